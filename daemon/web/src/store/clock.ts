/** Time as the store sees it; tests have one of their own. */
export interface Clock {
  now(): number
  after(delayMs: number, run: () => void): void
}

export const realClock: Clock = {
  now: () => performance.now(),
  after: (delayMs, run) => void setTimeout(run, delayMs),
}
