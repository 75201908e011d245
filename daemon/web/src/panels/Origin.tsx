/** Where a value came from, as a small mark beside it. */

import type { JSX } from 'preact'

/** By what the daemon's provenance says. */
const ORIGINS: Readonly<Record<string, { readonly mark: string; readonly words: string }>> = {
  sidecar: { mark: 'sidecar', words: 'from the metadata file beside the checkpoint' },
  checkpoint: { mark: 'checkpoint', words: 'from inside the checkpoint' },
  config: { mark: 'config', words: 'from the config of its run' },
  file_name: { mark: 'name', words: 'from the file’s name' },
  layout: { mark: 'folders', words: 'from the folders that it lies in' },
  file: { mark: 'file', words: 'from the file’s modification time' },
  tensors: { mark: 'tensors', words: 'recognised by names and shapes of its tensors' },
  hydra: { mark: 'hydra', words: 'from what Hydra wrote of its run' },
  hparams: { mark: 'hparams', words: 'from hparams.yaml of its logger' },
  metrics_csv: { mark: 'metrics.csv', words: 'from the row of its step in metrics.csv' },
  wandb: { mark: 'wandb', words: 'from the files of its Weights & Biases run' },
  wandb_summary: { mark: 'wandb', words: 'from the summary of its Weights & Biases run' },
  recorded: { mark: 'recorded', words: 'recorded by the training when it saved' },
  logs: { mark: 'logs', words: 'from the logs of its run' },
}

/** Nothing where it is not known. */
export function Origin(props: { of: string | undefined }): JSX.Element | null {
  if (!props.of) return null
  const { mark, words } = ORIGINS[props.of] ?? { mark: props.of.replaceAll('_', ' '), words: `from ${props.of.replaceAll('_', ' ')}` }
  return (
    <small class="origin" title={words}>
      <span class="sr-only">, {words}</span>
      <span aria-hidden="true">{mark}</span>
    </small>
  )
}
