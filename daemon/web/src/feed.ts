/** The feed: what the stream client hears goes into the store, and how the connection fares into the state. */

import { type CatalogError, countCheckpoints, streamCheckpoints, type Watch, watchCheckpoints } from './client'
import { type Connection, connection } from './state'
import type { RowStore } from './store/rows'
import type { PageConfig } from './wire'

/** Everything, also what cannot be used: the page shows it with a badge, and has a filter for it. */
const QUERY = { include_invalid: true } as const
/** When nothing has come for so long, the list is fetched instead: something on the way may hold streams back. */
const PATIENCE_MS = 8_000

/** How often the numbers of a snapshot under way are told: with each of 200 batches they cost more than the batches. */
const TELL_MS = 200

export interface Feed {
  /** Try again at once, or fetch the list anew. */
  readonly retry: () => void
  readonly stop: () => void
}

/** Fill the store from now on: by the live stream, or once from the list where that is asked for. */
export function startFeed(store: RowStore, config: PageConfig, streaming: boolean): Feed {
  const isLive = streaming && config.streaming && typeof EventSource !== 'undefined'
  return isLive ? followStream(store, config) : fetchList(store)
}

function set(patch: Partial<Connection>): void {
  connection.set({ ...connection.get(), ...patch })
}

/** Count what comes in of a snapshot, and tell of it now and then. */
class Progress {
  private received = 0
  private toldAt = -Infinity

  begin(): void {
    this.received = 0
    this.toldAt = -Infinity
  }

  add(count: number): void {
    this.received += count
    if (performance.now() - this.toldAt < TELL_MS) return
    this.toldAt = performance.now()
    set({ received: this.received })
  }
}

function followStream(store: RowStore, config: PageConfig): Feed {
  const ending = new AbortController()
  let hasBegun = false
  let isWhole = false
  let fallback: Feed | null = null
  const progress = new Progress()
  const patience = setTimeout(() => {
    if (!hasBegun && connection.get().status === 'loading') fallback = fetchList(store)
  }, PATIENCE_MS)
  const begin = (): void => {
    hasBegun = true
    fallback?.stop()
    fallback = null
  }
  expectTotal(ending.signal)
  const watch: Watch = watchCheckpoints(
    {
      onConnecting: () => set({ retryAt: null, ...(isWhole ? {} : { status: 'loading' }) }),
      onReset: () => {
        begin()
        store.beginSnapshot()
        if (isWhole) expectTotal(ending.signal)
        progress.begin()
        set({ status: 'loading', received: 0, reason: null })
      },
      onBatch: (entries) => {
        store.addSnapshot(entries)
        progress.add(entries.length)
      },
      onComplete: ({ total, revision }) => {
        isWhole = true
        store.endSnapshot()
        set({ status: 'live', received: total, expected: total, revision, reason: null, retryAt: null })
      },
      onResumed: (revision) => {
        begin()
        set({ status: 'live', revision, reason: null, retryAt: null })
      },
      onUpsert: (entries) => {
        store.upsert(entries)
        set({ revision: Math.max(connection.get().revision, ...entries.map((entry) => entry.revision)) })
      },
      onDelete: (gone) => store.delete(gone.map(({ id }) => id)),
      onHeartbeat: ({ revision, completeAsOf }) => set({ revision, completeAsOf }),
      onProgress: (done, total) => set({ sweep: done < total ? { done, total } : null }),
      onRebuilt: (rebuilt) => set({ rebuilt, sweep: null }),
      onWaiting: ({ reason, retryAt }) => set({ status: 'waiting', reason, retryAt, sweep: null }),
      onHidden: () => set({ status: 'hidden', retryAt: null }),
      onRefused: (error) => refuse(error),
    },
    { query: QUERY, ...(config.heartbeat_s === undefined ? {} : { heartbeatSeconds: config.heartbeat_s }) },
  )
  return {
    retry: () => watch.retry(),
    stop: () => {
      clearTimeout(patience)
      ending.abort()
      fallback?.stop()
      watch.close()
    },
  }
}

/** Ask how many there will be: a stream says so only at its end. */
function expectTotal(signal: AbortSignal): void {
  set({ expected: null })
  countCheckpoints({ query: QUERY, signal }).then(
    (expected) => connection.get().status === 'loading' && set({ expected }),
    () => undefined, // the bar then has no end; whatever is wrong, the stream says it as well
  )
}

function fetchList(store: RowStore): Feed {
  let ending = new AbortController()
  const fetchAll = (): void => {
    ending.abort()
    ending = new AbortController()
    const { signal } = ending
    const progress = new Progress()
    store.beginSnapshot()
    set({ status: 'loading', received: 0, reason: null, retryAt: null })
    expectTotal(signal)
    void streamCheckpoints(
      Infinity,
      {
        onBatch: (entries) => {
          store.addSnapshot(entries)
          progress.add(entries.length)
        },
        onComplete: ({ total, revision }) => {
          store.endSnapshot()
          set({ status: 'fetched', received: total, expected: total, revision })
        },
        onError: (error) => refuse(error),
      },
      { query: QUERY, signal, streaming: false },
    )
  }
  fetchAll()
  return { retry: fetchAll, stop: () => ending.abort() }
}

function refuse(error: CatalogError): void {
  set({
    status: error.isSignedOut ? 'signed-out' : 'waiting',
    reason: `${error.message}: ${error.remedy}`,
    retryAt: null,
  })
}
