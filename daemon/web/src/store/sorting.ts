/** Sorting: everything is put into another order in steps, between which the page gets its turn. */

import type { Clock } from './clock'

/** Time for one step. */
const STEP_MS = 12

export class Sorting {
  private steps: Generator<void, void> | null = null

  /** @param onEnd - Called when the last step is done. */
  constructor(
    private readonly clock: Clock,
    private readonly onEnd: () => void,
  ) {}

  /** Until it ends the old order stands, and nothing may be merged into it. */
  get isRunning(): boolean {
    return this.steps !== null
  }

  /** Take these steps, the first ones at once; those of an order that was asked for before are left. */
  begin(steps: Generator<void, void>): void {
    this.steps = steps
    this.advance(steps)
  }

  /** Take all steps that are left, now. */
  finish(): void {
    while (this.steps !== null) this.take(Infinity)
  }

  private advance(mine: Generator<void, void>): void {
    this.take(STEP_MS)
    if (this.steps === mine) this.clock.after(0, () => void (this.steps === mine && this.advance(mine)))
  }

  private take(budgetMs: number): void {
    const end = this.clock.now() + budgetMs
    do {
      if (this.steps?.next().done) {
        this.steps = null
        this.onEnd()
        return
      }
    } while (this.clock.now() < end)
  }
}
