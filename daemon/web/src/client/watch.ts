/** Keeping to look: a snapshot, then every change, over as many connections as it takes. */

import type { Deleted, Entry, Message } from '../wire'
import { countCheckpoints } from './listing'
import { addressOf, asCatalogError, type CatalogError, type RequestOptions } from './requests'

/** Why there is no connection just now, and when the next attempt is made. */
export interface Waiting {
  readonly reason: string
  /** Milliseconds since the epoch. */
  readonly retryAt: number
}

export interface WatchHandlers {
  /** A snapshot begins. Keep what you show until `onComplete`; what the snapshot did not have is then gone. */
  readonly onReset: (reason: string) => void
  /** A piece of the snapshot, newest first. */
  readonly onBatch: (checkpoints: readonly Entry[]) => void
  /** The snapshot is whole; from here on there are changes. */
  readonly onComplete: (summary: { readonly total: number; readonly revision: number }) => void
  /** New or changed entries, in full. */
  readonly onUpsert: (checkpoints: readonly Entry[]) => void
  readonly onDelete: (checkpoints: readonly Deleted[]) => void
  /** The connection is good again, and what was missed follows; no snapshot was needed. */
  readonly onResumed?: (revision: number) => void
  readonly onHeartbeat?: (beat: { readonly revision: number; readonly completeAsOf: string | null }) => void
  /** A sweep or rebuild is at work, in paths. */
  readonly onProgress?: (done: number, total: number) => void
  readonly onRebuilt?: (rebuild: { readonly token: string; readonly revision: number }) => void
  /** The connection is gone, or did not come about; it is tried again by itself. */
  readonly onWaiting?: (waiting: Waiting) => void
  /** An attempt is under way. */
  readonly onConnecting?: () => void
  /** The tab is hidden: its connection was given back, and comes again when it is shown. */
  readonly onHidden?: () => void
  /** The daemon refuses and will go on to: a token is missing, or a filter is wrong. `retry` tries once more. */
  readonly onRefused?: (error: CatalogError) => void
}

export interface WatchOptions extends RequestOptions {
  /** Where to go on: `Watch.lastEventId` of an earlier one with the same filters. */
  readonly lastEventId?: string
  /** Seconds between the daemon's heartbeats, its setting `heartbeat_s`. After 2.5 times that the connection is dead. */
  readonly heartbeatSeconds?: number
  /** False: keep the connection while the tab is hidden. A browser has six to one host. */
  readonly pausesWhenHidden?: boolean
}

/** A running watch. */
export interface Watch {
  /** Try at once instead of waiting. */
  readonly retry: () => void
  /** End it. */
  readonly close: () => void
  /** The cursor up to which everything was told; empty before the first snapshot is whole. */
  readonly lastEventId: string
}

const FIRST_PAUSE_MS = 1_000
const LONGEST_PAUSE_MS = 30_000
/** What a daemon that has too many listeners asks for; the `retry:` of a stream cannot be read by scripts. */
const FULL_PAUSE_MS = 10_000
/** A hidden tab may finish the snapshot under way, which would have to begin anew; not for ever. */
const HIDDEN_PATIENCE_MS = 20_000

/**
 * Follow the catalog for as long as the page lives: a snapshot, then every change. Reconnects by itself, with growing
 * pauses that have jitter, behind what was told; only when the daemon cannot go on from there a snapshot comes again.
 * A connection that says nothing for 2.5 heartbeats is given up. A hidden tab gives its connection back.
 */
export function watchCheckpoints(handlers: WatchHandlers, options: WatchOptions = {}): Watch {
  return new Watcher(handlers, options)
}

class Watcher implements Watch {
  lastEventId: string

  private source: EventSource | null = null
  private attempts = 0
  private isClosed = false
  private isInSnapshot = false
  private isRefused = false
  private pauseTimer: ReturnType<typeof setTimeout> | undefined
  private silenceTimer: ReturnType<typeof setTimeout> | undefined
  private hiddenTimer: ReturnType<typeof setTimeout> | undefined
  private readonly ending = new AbortController()
  private readonly silenceMs: number

  constructor(
    private readonly handlers: WatchHandlers,
    private readonly options: WatchOptions,
  ) {
    this.lastEventId = options.lastEventId ?? ''
    this.silenceMs = 2_500 * (options.heartbeatSeconds ?? 15)
    const { signal } = this.ending
    options.signal?.addEventListener('abort', this.close, { signal })
    if ((options.pausesWhenHidden ?? true) && typeof document !== 'undefined') {
      document.addEventListener('visibilitychange', this.followVisibility, { signal })
      // A page that goes into the back-forward cache must not hold a connection, and may come back from it.
      window.addEventListener('pagehide', () => this.disconnect(), { signal })
      window.addEventListener('pageshow', (event) => event.persisted && this.followVisibility(), { signal })
    }
    if (options.signal?.aborted) this.close()
    // Handlers may want the watch that this constructor is about to give.
    else queueMicrotask(this.followVisibility)
  }

  readonly retry = (): void => {
    this.isRefused = false
    this.attempts = 0
    if (!this.isClosed && this.source === null) this.connect()
  }

  readonly close = (): void => {
    this.isClosed = true
    this.disconnect()
    this.ending.abort()
  }

  private readonly followVisibility = (): void => {
    if (this.isClosed || this.isRefused) return
    clearTimeout(this.hiddenTimer)
    if (!this.isHidden) {
      if (this.source === null) this.connect()
    } else if (this.isInSnapshot && this.source !== null) {
      this.hiddenTimer = setTimeout(() => this.pause(), HIDDEN_PATIENCE_MS)
    } else {
      this.pause()
    }
  }

  private get isHidden(): boolean {
    return (this.options.pausesWhenHidden ?? true) && typeof document !== 'undefined' && document.hidden
  }

  private pause(): void {
    this.disconnect()
    this.handlers.onHidden?.()
  }

  private connect(): void {
    this.disconnect()
    this.handlers.onConnecting?.()
    const last = this.lastEventId === '' ? {} : { last_event_id: this.lastEventId }
    const source = new EventSource(addressOf('checkpoints/events', this.options, last))
    this.source = source
    this.expectWord()
    source.onmessage = (event: MessageEvent<string>) => this.source === source && this.receive(event)
    source.onerror = () => this.source === source && void this.lose('the connection to ckptd broke off')
  }

  private disconnect(): void {
    clearTimeout(this.pauseTimer)
    clearTimeout(this.silenceTimer)
    clearTimeout(this.hiddenTimer)
    this.source?.close()
    this.source = null
    this.isInSnapshot = false
  }

  /** Give the connection up unless something comes within 2.5 heartbeats. */
  private expectWord(): void {
    clearTimeout(this.silenceTimer)
    this.silenceTimer = setTimeout(() => {
      void this.lose(`ckptd has said nothing for ${Math.round(this.silenceMs / 1000)} seconds`)
    }, this.silenceMs)
  }

  private receive(event: MessageEvent<string>): void {
    this.expectWord()
    const message = JSON.parse(event.data) as Message
    if (message.type === 'bye') {
      const isFull = message.reason !== 'shutdown'
      void this.lose(isFull ? `ckptd has ended the stream: ${message.reason}` : 'ckptd is shutting down', isFull)
      return
    }
    this.attempts = 0
    this.tell(message)
    // Only now: what a handler failed on is sent again. A snapshot under way has no id.
    this.lastEventId = event.lastEventId
    if (!this.isInSnapshot && this.isHidden) this.followVisibility()
  }

  private tell(message: Exclude<Message, { readonly type: 'bye' }>): void {
    const { handlers } = this
    switch (message.type) {
      case 'reset':
        this.isInSnapshot = true
        return handlers.onReset(message.reason)
      case 'batch':
        return handlers.onBatch(message.checkpoints)
      case 'complete':
        this.isInSnapshot = false
        return handlers.onComplete({ total: message.total, revision: message.revision })
      case 'resumed':
        return handlers.onResumed?.(message.revision)
      case 'upsert':
        return handlers.onUpsert(message.checkpoints)
      case 'delete':
        return handlers.onDelete(message.checkpoints)
      case 'heartbeat':
        return handlers.onHeartbeat?.({ revision: message.revision, completeAsOf: message.complete_as_of })
      case 'progress':
        return handlers.onProgress?.(message.done, message.total)
      case 'rebuilt':
        return handlers.onRebuilt?.({ token: message.token, revision: message.revision })
    }
  }

  /** The connection is gone: find out whether the daemon refuses, else wait and try again. */
  private async lose(reason: string, isFull = false): Promise<void> {
    this.disconnect()
    const pauseMs = this.nextPauseMs(isFull)
    this.handlers.onWaiting?.({ reason, retryAt: Date.now() + pauseMs })
    this.pauseTimer = setTimeout(() => void this.tryAgain(), pauseMs)
    // EventSource does not tell why it failed. Asked now, a page whose token is no longer good says so at once.
    await this.askWhyNot()
  }

  private async tryAgain(): Promise<void> {
    if (this.isHidden) this.pause()
    else this.connect()
  }

  /** Stop trying where the daemon answers, and refuses. */
  private async askWhyNot(): Promise<void> {
    try {
      await countCheckpoints({ ...this.options, signal: this.ending.signal })
    } catch (error) {
      const refusal = asCatalogError(error)
      const isFinal = refusal.status >= 400 && refusal.status < 500 && refusal.status !== 429 && refusal.status !== 408
      if (!isFinal || this.isClosed || this.source !== null) return
      this.disconnect()
      this.isRefused = true
      this.handlers.onRefused?.(refusal)
    }
  }

  private nextPauseMs(isFull: boolean): number {
    const longest = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** this.attempts)
    this.attempts += 1
    // Jitter: a thousand pages that lost one daemon must not come back in the same moment.
    return (isFull ? FULL_PAUSE_MS : 0) + longest * (0.5 + Math.random() / 2)
  }
}
