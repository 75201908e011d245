/** Names: which metrics there are, and by which of them checkpoints were chosen. */

import type { Entry } from '../wire'
import { Tally } from './columns'

export class Names {
  private readonly metrics = new Tally()
  private readonly monitors = new Tally()

  count(entry: Entry, change: 1 | -1): void {
    for (const name in entry.metrics) this.metrics.add(name, change)
    if (entry.monitor !== null) this.monitors.add(entry.monitor, change)
  }

  /** Names of metrics that exist, the most frequent first. */
  ranked(): readonly string[] {
    return this.metrics.ranked().map(([name]) => name)
  }

  /** The metric that most checkpoints were chosen by; else the most frequent one that is no loss. */
  usual(): string | null {
    for (const [monitor] of this.monitors.ranked()) if (!/loss/i.test(monitor)) return monitor
    const names = this.ranked()
    return names.find((name) => !/loss|lr|epoch|step/i.test(name)) ?? names[0] ?? null
  }
}
