/**
 * What only the daemon can find: words in configs and hyper-parameters, which entries do not have. The page filters by
 * what it knows at once; a moment after the last key it asks the daemon's `q`, and shows what that finds as well.
 */

import { askJson } from './api'
import { app, connection, Observable } from './state'
import type { Found } from './store/filters'
import type { RowStore } from './store/rows'
import { parseSearch } from './store/search'
import type { ListAnswer } from './wire'

/** After the last key. */
const TYPING_MS = 300
/** Least time until the same is asked again because the catalog has changed. */
const AGAIN_MS = 3_000
/** What took the daemon and the page a second is asked again only after so many: `-adamw` has most of the catalog. */
const AGAIN_RATIO = 20
/** `MAX_PAGE_SIZE` of daemon/http/parameters.py. */
const PAGE = 1_000

/** What is shown of a search is not yet all that the daemon finds. */
export type Unfinished =
  | { readonly status: 'asking'; readonly done: number; readonly total: number }
  | { readonly status: 'failed'; readonly reason: string }

/** Null: all has come, or nothing is asked. A search of one page is too quick to tell of. */
export const unfinished = new Observable<Unfinished | null>(null)

/** One page of the list. */
type AskPage = (query: Readonly<Record<string, string>>, signal: AbortSignal) => Promise<ListAnswer>

/** Ask the daemon for whatever is searched for, from now on. Returns what ends it. */
export function followSearch(store: RowStore, askPage: AskPage = page): () => void {
  let asked = ''
  let revision = -1
  let againMs = AGAIN_MS
  let timer: ReturnType<typeof setTimeout> | undefined
  let ending: AbortController | null = null
  const ask = async (): Promise<void> => {
    timer = undefined
    const mine = (ending = new AbortController())
    const beganAt = performance.now()
    try {
      const found = await find(asked, askPage, mine.signal)
      if (mine.signal.aborted) return
      revision = found.revision
      unfinished.set(null)
      store.setFound(found)
    } catch (error) {
      // The page shows what it finds by itself, and says so.
      if (mine.signal.aborted) return
      unfinished.set({ status: 'failed', reason: error instanceof Error ? error.message : String(error) })
    }
    againMs = Math.max(AGAIN_MS, AGAIN_RATIO * (performance.now() - beganAt))
    ending = null
  }
  const schedule = (delayMs: number): void => {
    clearTimeout(timer)
    timer = setTimeout(() => void ask(), delayMs)
  }
  const leave = (): void => {
    ending?.abort()
    ending = null
    clearTimeout(timer)
    timer = undefined
    unfinished.set(null)
  }
  const follow = (): void => {
    const q = app.get().filters.q.trim()
    if (q === asked) return
    asked = q
    revision = -1
    leave()
    if (isWorthAsking(q)) schedule(TYPING_MS)
  }
  const renew = (): void => {
    const { status, revision: latest } = connection.get()
    const isAsking = timer !== undefined || ending !== null
    if (!isAsking && status === 'live' && latest > revision && isWorthAsking(asked)) schedule(againMs)
  }
  follow()
  const ends = [app.subscribe(follow), connection.subscribe(renew)]
  return () => {
    for (const end of ends) end()
    leave()
  }
}

function isWorthAsking(q: string): boolean {
  const { terms, problems } = parseSearch(q)
  return q.length > 1 && terms.length > 0 && problems.length === 0
}

/** All that a search finds, page by page. */
async function find(q: string, askPage: AskPage, signal: AbortSignal): Promise<Found> {
  const ids = new Set<string>()
  let revision: number | null = null
  for (let after: string | null = ''; after !== null; ) {
    const answer: ListAnswer = await askPage(
      { q, include_invalid: 'true', page_size: String(PAGE), ...(after && { after }) }, signal,
    )
    signal.throwIfAborted()
    // What came after the first page was asked for may be on none of them.
    revision ??= answer.revision
    for (const { id } of answer.checkpoints) ids.add(id)
    after = answer.next
    if (after !== null) unfinished.set({ status: 'asking', done: ids.size, total: Math.max(answer.total, ids.size) })
  }
  return { q, ids, revision: revision ?? 0 }
}

function page(query: Readonly<Record<string, string>>, signal: AbortSignal): Promise<ListAnswer> {
  return askJson(`checkpoints?${new URLSearchParams(query).toString()}`, { signal })
}
