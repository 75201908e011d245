/** The client's decisions over time, against a stream and a clock that the test plays; real daemons are in tests/web. */

import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'

import { type CatalogError, streamCheckpoints, type Watch, watchCheckpoints, type WatchOptions } from './client'
import { entryOf } from './store/store-model'

class Stream {
  static all: Stream[] = []
  onmessage: ((event: { data: string; lastEventId: string }) => void) | null = null
  onerror: (() => void) | null = null
  isClosed = false

  constructor(readonly url: string) {
    Stream.all.push(this)
  }

  close(): void {
    this.isClosed = true
  }

  say(message: object, lastEventId = ''): void {
    this.onmessage?.({ data: JSON.stringify(message), lastEventId })
  }
}

class Page extends EventTarget {
  hidden = false
  baseURI = 'http://lab/ckptd/'

  show(isShown: boolean): void {
    this.hidden = !isShown
    this.dispatchEvent(new Event('visibilitychange'))
  }
}

let page: Page
let answer: () => Promise<Response>
let asked: string[]
const heard: string[] = []

beforeEach(() => {
  vi.useFakeTimers()
  page = new Page()
  Stream.all = []
  heard.length = 0
  asked = []
  answer = async () => Response.json({ checkpoints: [], total: 0, next: null, revision: 1 })
  vi.stubGlobal('EventSource', Stream)
  vi.stubGlobal('document', page)
  vi.stubGlobal('window', new EventTarget())
  vi.stubGlobal('fetch', (url: string) => {
    asked.push(url)
    return answer()
  })
})

afterEach(() => {
  vi.unstubAllGlobals()
  vi.useRealTimers()
})

function stream(): Stream {
  const last = Stream.all.at(-1)
  if (last === undefined) throw new Error('nothing was connected')
  return last
}

async function watching(options: WatchOptions = {}): Promise<Watch> {
  const watch = watchCheckpoints(
    {
      onReset: (reason) => heard.push(`reset ${reason}`),
      onBatch: (entries) => heard.push(`batch ${entries.map(({ id }) => id).join()}`),
      onComplete: ({ total }) => heard.push(`complete ${total}`),
      onUpsert: (entries) => heard.push(`upsert ${entries.map(({ id }) => id).join()}`),
      onDelete: (gone) => heard.push(`delete ${gone.map(({ id }) => id).join()}`),
      onResumed: () => heard.push('resumed'),
      onHeartbeat: () => heard.push('heartbeat'),
      onProgress: (done, total) => heard.push(`progress ${done}/${total}`),
      onRebuilt: ({ token }) => heard.push(`rebuilt ${token}`),
      onWaiting: ({ reason, retryAt }) => heard.push(`waiting ${reason} ${retryAt > Date.now()}`),
      onHidden: () => heard.push('hidden'),
      onRefused: ({ status }) => heard.push(`refused ${status}`),
    },
    options,
  )
  await vi.advanceTimersByTimeAsync(0)
  return watch
}

function snapshot(id = 'i.7.0'): void {
  stream().say({ type: 'reset', reason: 'start' })
  stream().say({ type: 'batch', checkpoints: [entryOf('a')], count: 1, has_more: false })
  stream().say({ type: 'complete', total: 1, revision: 7 }, id)
}

describe('a watch', () => {
  test('tells every kind of message, passes over those that it does not know, and asks below the path of the page', async () => {
    const watch = await watching({ query: { exp_name: ['x', 'y'], include_invalid: true } })
    expect(stream().url).toBe('http://lab/ckptd/checkpoints/events?exp_name=x&exp_name=y&include_invalid=true')
    snapshot()
    stream().say({ type: 'upsert', checkpoints: [entryOf('b')] }, 'i.8.0')
    stream().say({ type: 'delete', checkpoints: [{ id: 'b', path: 'b', reason: 'removed' }] }, 'i.9.0')
    stream().say({ type: 'progress', done: 1, total: 2 }, 'i.9.0')
    stream().say({ type: 'rebuilt', token: 't', revision: 9 }, 'i.9.0')
    stream().say({ type: 'of a later version' }, 'i.9.0')
    stream().say({ type: 'heartbeat', revision: 9, complete_as_of: null }, 'i.9.0')
    expect(heard).toEqual([
      'reset start', 'batch a', 'complete 1', 'upsert b', 'delete b', 'progress 1/2', 'rebuilt t', 'heartbeat',
    ])
    expect(watch.lastEventId).toBe('i.9.0')
  })

  test('that loses its connection waits, and goes on behind what it told', async () => {
    await watching()
    snapshot()
    stream().onerror?.()
    expect(stream().isClosed).toBe(true)
    expect(heard.at(-1)).toBe('waiting the connection to ckptd broke off true')
    await vi.advanceTimersByTimeAsync(1_000)
    expect(stream().url).toContain('last_event_id=i.7.0')
    expect(Stream.all).toHaveLength(2)
  })

  test('that is cut off within a snapshot does not claim to have it', async () => {
    const watch = await watching({ lastEventId: 'i.1.0' })
    stream().say({ type: 'reset', reason: 'cursor too old' })
    stream().say({ type: 'batch', checkpoints: [], count: 0, has_more: true })
    stream().onerror?.()
    expect(watch.lastEventId).toBe('')
    await vi.advanceTimersByTimeAsync(1_000)
    expect(stream().url).not.toContain('last_event_id')
  })

  test('waits longer each time it fails, half a minute at most, and from the start again once it worked', async () => {
    await watching()
    const pauses: number[] = []
    for (let attempt = 0; attempt < 9; attempt++) {
      const [count, from] = [Stream.all.length, Date.now()]
      stream().onerror?.()
      while (Stream.all.length === count) await vi.advanceTimersByTimeAsync(50)
      pauses.push(Date.now() - from)
    }
    expect(Math.max(...pauses)).toBeLessThanOrEqual(30_050)
    pauses.slice(0, 5).forEach((pause, attempt) => {
      expect(pause).toBeGreaterThanOrEqual(500 * 2 ** attempt)
      expect(pause).toBeLessThanOrEqual(1_000 * 2 ** attempt + 50)
    })
    snapshot()
    const count = Stream.all.length
    stream().onerror?.()
    await vi.advanceTimersByTimeAsync(1_050)
    expect(Stream.all.length).toBe(count + 1)
  })

  test('gives up a connection that says nothing for 2.5 heartbeats', async () => {
    await watching({ heartbeatSeconds: 2 })
    snapshot()
    await vi.advanceTimersByTimeAsync(4_900)
    expect(stream().isClosed).toBe(false)
    await vi.advanceTimersByTimeAsync(200)
    expect(heard.at(-1)).toBe('waiting ckptd has said nothing for 5 seconds true')
  })

  test('comes back later to a daemon that is full than to one that is started anew', async () => {
    await watching()
    stream().say({ type: 'bye', reason: 'shutdown' })
    expect(heard.at(-1)).toBe('waiting ckptd is shutting down true')
    await vi.advanceTimersByTimeAsync(1_000)
    expect(Stream.all).toHaveLength(2)
    stream().say({ type: 'bye', reason: 'too many listeners' })
    await vi.advanceTimersByTimeAsync(9_900)
    expect(Stream.all).toHaveLength(2)
    await vi.advanceTimersByTimeAsync(2_200)
    expect(Stream.all).toHaveLength(3)
  })

  test('tries at once when told to', async () => {
    const watch = await watching()
    stream().onerror?.()
    watch.retry()
    expect(Stream.all).toHaveLength(2)
    await vi.advanceTimersByTimeAsync(5_000)
    expect(Stream.all).toHaveLength(2)
  })

  test('stops where the daemon refuses, and says so once; told to, it tries again', async () => {
    answer = async () => Response.json({ detail: 'a token is needed', remedy: 'sign in' }, { status: 401 })
    const watch = await watching()
    stream().onerror?.()
    await vi.advanceTimersByTimeAsync(120_000)
    expect(heard.filter((told) => told.startsWith('refused'))).toEqual(['refused 401'])
    expect(Stream.all).toHaveLength(1)
    watch.retry()
    expect(Stream.all).toHaveLength(2)
  })

  test('does not take a daemon that cannot be reached for one that refuses', async () => {
    answer = () => Promise.reject(new TypeError('failed to fetch'))
    await watching()
    stream().onerror?.()
    await vi.advanceTimersByTimeAsync(1_100)
    expect(Stream.all).toHaveLength(2)
    expect(heard.join()).not.toContain('refused')
  })

  test('is over when it is closed', async () => {
    const watch = await watching()
    stream().onerror?.()
    watch.close()
    page.show(false)
    page.show(true)
    await vi.advanceTimersByTimeAsync(120_000)
    expect(Stream.all).toHaveLength(1)
  })
})

describe('a hidden tab', () => {
  test('gives its connection back, and goes on from where it was when it is shown', async () => {
    await watching()
    snapshot()
    page.show(false)
    expect([stream().isClosed, heard.at(-1)]).toEqual([true, 'hidden'])
    await vi.advanceTimersByTimeAsync(600_000)
    expect(Stream.all).toHaveLength(1)
    page.show(true)
    expect(stream().url).toContain('last_event_id=i.7.0')
  })

  test('may finish its snapshot first', async () => {
    await watching()
    stream().say({ type: 'reset', reason: 'start' })
    page.show(false)
    expect(stream().isClosed).toBe(false)
    stream().say({ type: 'complete', total: 0, revision: 7 }, 'i.7.0')
    expect([stream().isClosed, heard.at(-1)]).toEqual([true, 'hidden'])
  })

  test('whose snapshot takes for ever gives its connection back all the same', async () => {
    await watching()
    stream().say({ type: 'reset', reason: 'start' })
    page.show(false)
    for (let second = 0; second < 21; second++) {
      stream().say({ type: 'batch', checkpoints: [], count: 0, has_more: true })
      await vi.advanceTimersByTimeAsync(1_000)
    }
    expect(stream().isClosed).toBe(true)
  })

  test('that was opened in the background takes no connection', async () => {
    page.hidden = true
    await watching()
    expect(Stream.all).toHaveLength(0)
    page.show(true)
    expect(Stream.all).toHaveLength(1)
  })

  test('does not try again while it is hidden', async () => {
    await watching()
    snapshot()
    stream().onerror?.()
    page.show(false)
    await vi.advanceTimersByTimeAsync(120_000)
    expect(Stream.all).toHaveLength(1)
  })
})

describe('one look', () => {
  async function looking(limit: number, streaming = true): Promise<void> {
    const done = streamCheckpoints(
      limit,
      {
        onBatch: (entries) => heard.push(`batch ${entries.map(({ id }) => id).join()}`),
        onComplete: ({ total }) => heard.push(`complete ${total}`),
        onError: (error: CatalogError) => heard.push(`error ${error.status} ${error.remedy}`),
      },
      { streaming },
    )
    await vi.advanceTimersByTimeAsync(0)
    return done
  }

  test('is a stream that ends', async () => {
    const done = looking(20)
    expect(stream().url).toBe('http://lab/ckptd/checkpoints/stream?limit=20&batch_size=20')
    stream().say({ type: 'batch', checkpoints: [entryOf('a')], count: 1, has_more: false })
    stream().say({ type: 'complete', total: 1, revision: 3 })
    await done
    expect([heard, stream().isClosed, asked]).toEqual([['batch a', 'complete 1'], true, []])
  })

  test('is had in pages where the stream is refused, or held back on the way', async () => {
    answer = async () => Response.json({ checkpoints: [entryOf('a')], total: 1, next: null, revision: 3 })
    const refused = looking(20)
    stream().onerror?.()
    await refused
    const heldBack = looking(20)
    await vi.advanceTimersByTimeAsync(10_000)
    await heldBack
    expect(heard).toEqual(['batch a', 'complete 1', 'batch a', 'complete 1'])
  })

  test('of everything follows the pages to their end, behind cursors', async () => {
    const pages = [
      { checkpoints: [entryOf('a')], total: 2, next: 'cursor', revision: 3 },
      { checkpoints: [entryOf('b')], total: 2, next: null, revision: 3 },
    ]
    answer = async () => Response.json(pages.shift())
    await looking(Number.POSITIVE_INFINITY)
    expect(heard).toEqual(['batch a', 'batch b', 'complete 2'])
    expect(asked.map((url) => new URL(url).search)).toEqual(['?page_size=1000', '?page_size=1000&after=cursor'])
  })

  test('that breaks off says so instead of beginning anew', async () => {
    const done = looking(20)
    stream().say({ type: 'batch', checkpoints: [entryOf('a')], count: 1, has_more: true })
    stream().onerror?.()
    await done
    expect(heard).toEqual(['batch a', 'error 0 ask again'])
  })

  test('that is refused says what to do', async () => {
    answer = async () => Response.json({ detail: 'no', remedy: 'sign in' }, { status: 401 })
    await looking(20, false)
    expect(heard).toEqual(['error 401 sign in'])
  })
})
