/** One look: the newest checkpoints, as server-sent events or page by page. */

import type { Entry, ListAnswer, Message } from '../wire'
import { addressOf, asCatalogError, CatalogError, fetchJson, type RequestOptions } from './requests'

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
