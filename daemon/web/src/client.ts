/**
 * The stream client of ckptd: `streamCheckpoints` for one look, `watchCheckpoints` to keep looking.
 *
 * A plain module without imports, served by every daemon at `/client.js`; docs/streaming.md has examples.
 *
 * @module
 */

import type { Deleted, DeleteReason, Entry, ListAnswer, Message, Problem } from './wire'

export type { Deleted, DeleteReason, Entry, Message, Problem }

/** Raised when the daemon refused, with what it said; `status` is 0 where it could not be reached. */
export class CatalogError extends Error {
  constructor(
    readonly status: number,
    message: string,
    /** What to do about it. */
    readonly remedy: string,
  ) {
    super(message)
    this.name = 'CatalogError'
  }

  /** Whether a token is missing or wrong. */
  get isSignedOut(): boolean {
    return this.status === 401
  }
}

/** Filters of the list, as its query parameters: `{ exp_name: ['a', 'b'], min_hmean: 0.8 }`. */
export type Query = Readonly<Record<string, string | number | boolean | readonly string[]>>

export interface RequestOptions {
  /** Where the daemon is, with a slash at its end; by default where the page is. */
  readonly base?: string | URL
  readonly query?: Query
  /** Ends it. */
  readonly signal?: AbortSignal
}

// ---- one look ---------------------------------------------------------------------------------------------------

export interface StreamOptions extends RequestOptions {
  /** Entries in one message; the daemon's default is 10. */
  readonly batchSize?: number
  /** False: do not try server-sent events, fetch pages of the list. */
  readonly streaming?: boolean
}

export interface StreamHandlers {
  /** Some entries, newest first, unless `sort_by` says otherwise. */
  readonly onBatch: (checkpoints: readonly Entry[]) => void
  /** That was all. */
  readonly onComplete?: (summary: { readonly total: number; readonly revision: number }) => void
  /** It could not be had, neither as a stream nor in pages. */
  readonly onError?: (error: CatalogError) => void
}

/** The most that the daemon sends at once. */
const MAX_PAGE = 1000
/** A stream that has said nothing for so long is one that something on the way holds back. */
const STREAM_PATIENCE_MS = 10_000

/**
 * Fetch the newest checkpoints, the first ones at once: as server-sent events, or, where those are not to be had (no
 * `EventSource`, a proxy that buffers, more than 1,000 wanted), page by page. Handlers are called the same either way.
 *
 * @param limit - How many; `Infinity` for all.
 * @param handlers - Are told of what comes. Either `onComplete` or `onError` is the last call, unless it is aborted.
 * @returns Settles with that last call; never rejects.
 */
export async function streamCheckpoints(
  limit: number,
  handlers: StreamHandlers,
  options: StreamOptions = {},
): Promise<void> {
  const { streaming = true, signal } = options
  if (streaming && limit <= MAX_PAGE && typeof EventSource !== 'undefined') {
    if ((await streamEvents(limit, handlers, options)) || signal?.aborted) return
  }
  try {
    await fetchPages(limit, handlers, options)
  } catch (error) {
    if (!signal?.aborted) handlers.onError?.(asCatalogError(error))
  }
}

/** Whether the stream did it; nothing was told if not. */
function streamEvents(limit: number, handlers: StreamHandlers, options: StreamOptions): Promise<boolean> {
  const { batchSize = 50, signal } = options
  const url = addressOf('checkpoints/stream', options, { limit, batch_size: Math.min(batchSize, limit) })
  return new Promise((resolve) => {
    const source = new EventSource(url)
    let hasBegun = false
    const end = (isDone: boolean): void => {
      clearTimeout(timer)
      source.close()
      signal?.removeEventListener('abort', abort)
      resolve(isDone)
    }
    const abort = (): void => end(true)
    const timer = setTimeout(() => hasBegun || end(false), STREAM_PATIENCE_MS)
    signal?.addEventListener('abort', abort)
    source.onmessage = ({ data }: MessageEvent<string>) => {
      const message = JSON.parse(data) as Message
      hasBegun = true
      if (message.type === 'batch') handlers.onBatch(message.checkpoints)
      if (message.type !== 'complete') return
      end(true)
      handlers.onComplete?.({ total: message.total, revision: message.revision })
    }
    source.onerror = () => {
      // EventSource would ask again by itself, from the beginning.
      end(hasBegun)
      if (hasBegun) handlers.onError?.(new CatalogError(0, 'the stream broke off', 'ask again'))
    }
  })
}

async function fetchPages(limit: number, handlers: StreamHandlers, options: StreamOptions): Promise<void> {
  let count = 0
  let after: string | null = null
  do {
    const size: number = Math.min(MAX_PAGE, limit - count)
    const page: ListAnswer = await fetchJson(
      addressOf('checkpoints', options, { page_size: size, ...(after === null ? {} : { after }) }), options.signal,
    )
    if (options.signal?.aborted) return
    count += page.checkpoints.length
    after = page.next
    handlers.onBatch(page.checkpoints)
    if (after === null || count >= limit) handlers.onComplete?.({ total: count, revision: page.revision })
  } while (after !== null && count < limit)
}

/**
 * How many checkpoints match; for the progress of a snapshot, which says its total only at its end.
 *
 * @throws CatalogError - where the daemon cannot be reached or refuses.
 */
export async function countCheckpoints(options: RequestOptions = {}): Promise<number> {
  const answer: ListAnswer = await fetchJson(addressOf('checkpoints', options, { page_size: 1 }), options.signal)
  return answer.total
}

// ---- keeping to look --------------------------------------------------------------------------------------------

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

// ---- requests ---------------------------------------------------------------------------------------------------

function addressOf(path: string, { base, query }: RequestOptions, more: Query): string {
  const url = new URL(path, base ?? (typeof document === 'undefined' ? undefined : document.baseURI))
  for (const [name, value] of Object.entries({ ...query, ...more })) {
    for (const item of Array.isArray(value) ? (value as readonly string[]) : [value]) {
      url.searchParams.append(name, String(item))
    }
  }
  return url.href
}

async function fetchJson<T>(url: string, signal: AbortSignal | undefined): Promise<T> {
  const response = await fetch(url, { headers: { Accept: 'application/json' }, ...(signal ? { signal } : {}) })
  if (response.ok) return (await response.json()) as T
  const problem = (await response.json().catch(() => ({}))) as Partial<Problem>
  throw new CatalogError(
    response.status, problem.detail ?? `ckptd answered ${response.status}`, problem.remedy ?? 'look into its log',
  )
}

function asCatalogError(error: unknown): CatalogError {
  if (error instanceof CatalogError) return error
  return new CatalogError(0, 'ckptd cannot be reached', 'see whether it runs: systemctl status ckptd')
}
