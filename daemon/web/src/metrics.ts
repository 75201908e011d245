/** Metrics: which way one improves, and which of several values is the best. The daemon judges alike (catalog/compare_metrics.py). */

import type { Direction } from './answers'
import type { Entry } from './wire'

const SMALLER = words(
  'loss losses error errors err mse rmse mae mape nll ppl perplexity wer cer ter fid kid lpips bpb bpc kl brier ece distance',
)
const LARGER = words(
  'acc accuracy precision recall hmean f1 fscore fbeta iou miou map map50 ap ap50 ar auc auroc roc auprc bleu rouge ' +
    'rougel meteor cider score psnr ssim dice jaccard r2 kappa mcc ndcg mrr correlation pearson spearman reward',
)
const SCORE = /^(?:(?:val|valid|validation|eval)[/_.])?(precision|recall|hmean)(?:_epoch)?$/
const LOSS = /^(?:val|valid|validation|eval)[/_.]loss(?:_epoch)?$/

/** The schema's name of a logged metric (`val/loss` is `validation_loss`), or the name itself where it has none. */
export function metricKey(name: string): string {
  const lowered = name.toLowerCase()
  return SCORE.exec(lowered)?.[1] ?? (LOSS.test(lowered) ? 'validation_loss' : name)
}

type Monitoring = Pick<Entry, 'monitor' | 'monitor_mode'>

/**
 * Which way the metric `name` improves. The mode of a checkpoint that monitors it decides; where modes contradict each
 * other, nothing does. Else the last word of the name that tells; null where none tells.
 */
export function directionOf(name: string, entries: Iterable<Monitoring>): Direction | null {
  const key = metricKey(name)
  const declared = new Set<Direction>()
  for (const { monitor, monitor_mode: mode } of entries)
    if (monitor && (mode === 'min' || mode === 'max') && metricKey(monitor) === key) declared.add(mode)
  if (declared.size > 0) return declared.size === 1 ? ([...declared][0] ?? null) : null
  for (const word of (name.toLowerCase().match(/[a-z]+[0-9]*/g) ?? []).reverse()) {
    if (SMALLER.has(word) || word.endsWith('loss')) return 'min'
    if (LARGER.has(word)) return 'max'
  }
  return null
}

/** Positions of the best value; none where the direction is not known, or there is nothing to choose from. */
export function bestOf(values: readonly (number | null | undefined)[], direction: Direction | null): number[] {
  const known = values.filter((value): value is number => typeof value === 'number' && Number.isFinite(value))
  const [low, high] = [Math.min(...known), Math.max(...known)]
  if (direction === null || known.length < 2 || low === high) return []
  const best = direction === 'min' ? low : high
  return values.flatMap((value, position) => (value === best ? [position] : []))
}

/** What the direction means, in a word and a glyph. */
export const DIRECTION_WORDS: Readonly<Record<Direction, { readonly glyph: string; readonly word: string }>> = {
  min: { glyph: '↓', word: 'smaller is better' },
  max: { glyph: '↑', word: 'larger is better' },
}

function words(text: string): ReadonlySet<string> {
  return new Set(text.split(' '))
}
