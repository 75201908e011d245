/** Fading: rows that are gone keep their places for a moment, so that one sees what went. */

import type { Clock } from './clock'

/** How long a row that is gone is still shown. */
export const FADE_MS = 800

export class Fading {
  /** 0 where motion is not wanted. */
  ms = FADE_MS

  private rows: { readonly slot: number; readonly until: number }[] = []
  private isAwaited = false

  constructor(private readonly clock: Clock) {}

  /** A row is gone. */
  add(slot: number): void {
    if (this.ms > 0) this.rows.push({ slot, until: this.clock.now() + this.ms })
  }

  /** The slots that still fade. */
  slots(): ReadonlySet<number> {
    if (this.rows.length) this.rows = this.rows.filter(({ until }) => until > this.clock.now())
    return new Set(this.rows.map(({ slot }) => slot))
  }

  /** Call `run` once what fades now has faded; nothing is called where nothing fades, or it is called already. */
  whenFaded(run: () => void): void {
    if (!this.rows.length || this.isAwaited) return
    this.isAwaited = true
    this.clock.after(this.ms, () => {
      this.isAwaited = false
      run()
    })
  }
}
