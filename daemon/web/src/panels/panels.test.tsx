// @vitest-environment happy-dom
import { render } from 'preact'
import { act } from 'preact/test-utils'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'

import { store } from '../store'
import { Detail } from './Detail'
import { Rebuild } from './Rebuild'
import { CopyButton, useRequest } from './parts'
import { actionOf, type ListRow } from './TreeList'

const ENTRY = {
  id: 'abc',
  path: 'run/a.ckpt',
  root: '/srv',
  checkpoint_path: '/srv/run/a.ckpt',
  display_name: 'run/a',
  exp_name: 'run',
  run_id: null,
  architecture: null,
  backbone: null,
  epoch: 3,
  global_step: null,
  metrics: {},
  monitor: null,
  monitor_mode: null,
  monitor_value: null,
  size_bytes: 10,
  modified_at: '2025-10-11T00:00:00.000Z',
  created_at: null,
  format: 'torch_zip',
  n_parameters: 4,
  weights_bytes: 4,
  optimizer_bytes: 0,
  dtypes: ['float32'],
  health: 'valid',
  verified: 'checksum',
  safety: 'safe',
  findings: [],
  has_metadata: true,
  metadata_source: 'daemon',
  has_config: false,
  config_path: null,
  content_id: null,
  alias_of: null,
  revision: 1,
} as const

let host: HTMLElement
const answers = new Map<string, () => Promise<Response>>()
const asked: string[] = []
const original = globalThis.fetch

beforeEach(() => {
  host = document.createElement('div')
  document.body.append(host)
  globalThis.fetch = ((url: string, init: RequestInit) => {
    const path = new URL(url).pathname
    asked.push(path)
    const answer = answers.get(path)
    if (answer === undefined) return Promise.reject(new TypeError(`nobody answers ${path}`))
    return new Promise((resolve, reject) => {
      init.signal?.addEventListener('abort', () => reject(new DOMException('aborted', 'AbortError')))
      void answer().then(resolve, reject)
    })
  }) as typeof fetch
})

afterEach(() => {
  void act(() => render(null, host))
  host.remove()
  answers.clear()
  asked.length = 0
  store.delete(['abc'])
  store.flushAll()
  globalThis.fetch = original
})

const json = (value: unknown, status = 200, type = 'application/json') =>
  Promise.resolve(new Response(JSON.stringify(value), { status, headers: { 'content-type': type } }))
const draw = (element: preact.ComponentChild) => act(() => render(element, host))
const seen = (text: string) => vi.waitFor(() => expect(host.textContent).toContain(text), { timeout: 30_000 })

test('the details show the row at once and what is fetched when it comes', async () => {
  answers.set('/checkpoints/abc', () => json({ ...ENTRY, lightning_version: '9.9.9', findings: [] }))
  store.upsert([{ ...ENTRY }])
  store.flushAll()
  await draw(<Detail id="abc" onClose={() => {}} />)
  expect(host.querySelector('h2')?.textContent).toBe('run/a')
  await seen('9.9.9')
})

test('a new revision of the row is fetched quietly: what was shown stays until it is there', async () => {
  let version = 'first-version'
  answers.set('/checkpoints/abc', () => json({ ...ENTRY, lightning_version: version }))
  store.upsert([{ ...ENTRY }])
  store.flushAll()
  await draw(<Detail id="abc" onClose={() => {}} />)
  await seen('first-version')
  version = 'second-version'
  let release = (): void => {}
  const held = new Promise<void>((resolve) => {
    release = resolve
  })
  answers.set('/checkpoints/abc', () => held.then(() => json({ ...ENTRY, revision: 2, lightning_version: version })))
  await act(() => {
    store.upsert([{ ...ENTRY, revision: 2, epoch: 41 }])
    store.flushAll()
  })
  await seen('41')
  expect(host.textContent).toContain('first-version')
  release()
  await seen('second-version')
})

test('a checkpoint that is gone says when and why, and where it is now', async () => {
  const gone = { type: 'about:blank', title: 'Gone', status: 410, detail: 'was moved', remedy: 'use the other id' }
  const members = { path: 'run/a.ckpt', reason: 'moved', deleted_at: '2025-10-11T00:00:00.000Z', moved_to: 'xyz' }
  answers.set('/checkpoints/abc', () => json({ ...gone, ...members }, 410, 'application/problem+json'))
  await draw(<Detail id="abc" onClose={() => {}} />)
  await seen('run/a.ckpt was moved')
  expect(host.querySelector('button.button:not(.icon)')?.textContent).toContain('show it where it is now')
})

test('a daemon that does not answer is told with what to do, and asked again on request', async () => {
  await draw(<Detail id="abc" onClose={() => {}} />)
  await seen('cannot be reached')
  answers.set('/checkpoints/abc', () => json({ ...ENTRY, lightning_version: 'back-again' }))
  const retry = [...host.querySelectorAll('button')].find((button) => button.textContent?.includes('try again'))
  await act(() => retry?.click())
  await seen('back-again')
})

test('Escape closes the details, and what is typed elsewhere does not', async () => {
  answers.set('/checkpoints/abc', () => json(ENTRY))
  const onClose = vi.fn()
  await draw(<Detail id="abc" onClose={onClose} />)
  await seen('run/a')
  const press = (key: string) =>
    host.querySelector('aside')?.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true, cancelable: true }))
  press('j')
  expect(onClose).not.toHaveBeenCalled()
  press('Escape')
  expect(onClose).toHaveBeenCalledOnce()
})

test('names of files are text, never markup', async () => {
  const name = '<img src=x onerror=alert(1)>\u202e'
  answers.set('/checkpoints/abc', () => json({ ...ENTRY, display_name: name, path: name, exp_name: name }))
  await draw(<Detail id="abc" onClose={() => {}} />)
  await seen('<img src=x onerror=alert(1)>\\u202e')
  expect(host.querySelector('img')).toBeNull()
})

test('an answer to an earlier question never stands under a later one', async () => {
  const release: Record<string, () => void> = {}
  const Asking = ({ id }: { id: string }) => {
    const { value } = useRequest(id, 0, () => new Promise<string>((resolve) => (release[id] = () => resolve(`about ${id}`))))
    return <p>{value ?? 'waiting'}</p>
  }
  await draw(<Asking id="one" />)
  await draw(<Asking id="two" />)
  release.two?.()
  await seen('about two')
  await act(async () => release.one?.())
  expect(host.textContent).toBe('about two')
})

test('who may only read is told so, and is offered no rebuild', async () => {
  await draw(<Rebuild mayAsk={false} />)
  await seen('may only read')
  expect(host.querySelector('button')).toBeNull()
  await draw(<Rebuild mayAsk />)
  await seen('Sweep now')
})

test('copying says so, and says it where the browser does not let it', async () => {
  const write = vi.fn(() => Promise.resolve())
  vi.stubGlobal('navigator', { clipboard: { writeText: write } })
  await draw(<CopyButton text={'a\u202eb'} what="path" />)
  await act(() => host.querySelector('button')?.click())
  await vi.waitFor(() => expect(write).toHaveBeenCalledWith('a\u202eb'))
  vi.unstubAllGlobals()
})

const ROWS: ListRow[] = [
  { id: 'a', depth: 0, isOpen: true },
  { id: 'a.b', depth: 1, isOpen: false },
  { id: 'a.c', depth: 1, isOpen: null },
  { id: 'd', depth: 0, isOpen: null },
]
const press = (key: string, at: number) => actionOf({ key, altKey: false, ctrlKey: false, metaKey: false }, ROWS, at, 10)

test('keys move through a tree as WAI-ARIA has it', () => {
  expect(['ArrowDown', 'ArrowUp', 'Home', 'End', 'PageDown'].map((key) => press(key, 1))).toEqual([2, 0, 0, 3, 11])
  expect([press('ArrowRight', 0), press('ArrowRight', 1), press('ArrowRight', 2)]).toEqual([1, 'toggle', 2])
  expect([press('ArrowLeft', 0), press('ArrowLeft', 2), press('ArrowLeft', 3)]).toEqual(['toggle', 0, 3])
  expect([press('Enter', 1), press(' ', 2), press('x', 1)]).toEqual(['toggle', 2, null])
  expect(actionOf({ key: 'ArrowDown', altKey: true, ctrlKey: false, metaKey: false }, ROWS, 0, 10)).toBeNull()
})
