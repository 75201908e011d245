// @vitest-environment happy-dom
import { afterEach, beforeEach, expect, test } from 'vitest'

import { ApiError, ask, askJson, comparePath, fetchTensors, isAbort, type Fetch } from './api'
import { connection } from './state'

const before = connection.get()

beforeEach(() => {
  document.head.innerHTML = '<base href="http://lab.example/ckptd/">'
})
afterEach(() => {
  connection.set(before)
})

const problem = { type: 'about:blank', title: 'Gone', status: 410, detail: 'a.ckpt was removed', remedy: 'drop it' }

function answering(status: number, body: string, type: string): Fetch {
  return () => Promise.resolve(new Response(body, { status, headers: { 'content-type': type } }))
}

async function errorOf(promise: Promise<unknown>): Promise<ApiError> {
  const error: unknown = await promise.then(
    () => null,
    (reason: unknown) => reason,
  )
  if (!(error instanceof ApiError)) throw new Error(`not an ApiError: ${String(error)}`)
  return error
}

test('addresses are relative to the page, so that it works below a path prefix', async () => {
  let asked = ''
  await ask('health/checkpoints', {
    fetch: (url) => {
      asked = url
      return Promise.resolve(new Response('{}'))
    },
  })
  expect(asked).toBe('http://lab.example/ckptd/health/checkpoints')
})

test('a refusal of the daemon is an error with its detail and remedy', async () => {
  const fetch = answering(410, JSON.stringify({ ...problem, path: 'a.ckpt', reason: 'removed' }), 'application/problem+json')
  const error = await errorOf(ask('checkpoints/a', { fetch }))
  expect([error.status, error.message, error.remedy]).toEqual([410, 'a.ckpt was removed', 'drop it'])
  expect(error.gone?.path).toBe('a.ckpt')
})

test('a refusal of somebody in between says who to look at, also where it pretends to be a problem', async () => {
  const proxy = await errorOf(ask('x', { fetch: answering(502, '<html>', 'text/html') }))
  expect([proxy.status, proxy.gone]).toEqual([502, null])
  expect(proxy.remedy).toContain('proxy')
  expect((await errorOf(ask('x', { fetch: answering(500, '[]', 'application/problem+json') }))).remedy).toContain('proxy')
})

test('401 signs the page out', async () => {
  const fetch = answering(401, JSON.stringify({ ...problem, status: 401 }), 'application/problem+json')
  expect((await errorOf(ask('x', { fetch }))).status).toBe(401)
  expect(connection.get().status).toBe('signed-out')
})

test('a daemon that is away and one that hangs are told apart', async () => {
  const away = await errorOf(ask('x', { fetch: () => Promise.reject(new TypeError('failed to fetch')) }))
  expect(away.message).toContain('cannot be reached')
  const hanging: Fetch = (_, { signal }) =>
    new Promise((_resolve, reject) => signal?.addEventListener('abort', () => reject(signal.reason as Error)))
  expect((await errorOf(ask('x', { fetch: hanging, timeoutMs: 1 }))).message).toContain('no answer within')
})

test('a request that nobody waits for any more ends in an abort, not in an error to show', async () => {
  const controller = new AbortController()
  const waiting = ask('x', {
    signal: controller.signal,
    fetch: (_, { signal }) =>
      new Promise((_resolve, reject) => signal?.addEventListener('abort', () => reject(signal.reason as Error))),
  }).catch((error: unknown) => error)
  controller.abort()
  expect(isAbort(await waiting)).toBe(true)
})

test('an answer that is cut off is an error with a remedy', async () => {
  expect((await errorOf(askJson('x', { fetch: answering(200, '{"a":', 'application/json') }))).remedy).toContain('again')
})

test('a long tensor table is fetched in pieces until it is whole', async () => {
  const all = Array.from({ length: 7 }, (_, n) => ({ name: `t${n}` }))
  const offsets: string[] = []
  const original = globalThis.fetch
  globalThis.fetch = ((url: string) => {
    const offset = Number(new URL(url).searchParams.get('offset'))
    offsets.push(String(offset))
    return Promise.resolve(Response.json({ total: all.length, tensors: all.slice(offset, offset + 3) }))
  }) as typeof fetch
  try {
    const seen: number[] = []
    expect(await fetchTensors('a', undefined, (tensors) => seen.push(tensors.length))).toHaveLength(7)
    expect([offsets, seen]).toEqual([['0', '3', '6'], [3, 6, 7]])
  } finally {
    globalThis.fetch = original
  }
})

test('the address of a comparison keeps the order of its checkpoints', () => {
  expect(comparePath(['b', 'a'], { tensor_limit: '0' })).toBe('checkpoints/compare?id=b&id=a&tensor_limit=0')
})
