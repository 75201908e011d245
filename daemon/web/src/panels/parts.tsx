/** Parts that all panels are made of: text that shows what it is, copying, loading, and what went wrong. */

import type { ComponentChildren, JSX } from 'preact'
import { useEffect, useRef, useState } from 'preact/hooks'

import { announce } from '../announce'
import { ApiError, isAbort } from '../api'
import { copyText } from '../components/CopyButton'
import { Icon } from '../components/Icon'
import type { Look } from '../components/looks'
import { useObservable } from '../hooks'
import { connection } from '../state'
import { store } from '../store'
import { clipped, visible } from '../visible'
import type { Entry, Safety, Severity } from '../wire'

export const SAFETY_LOOKS: Readonly<Record<Safety, Look>> = {
  safe: { icon: 'check', tone: 'ok' },
  unsafe: { icon: 'warning', tone: 'invalid' },
  unknown: { icon: 'search', tone: 'neutral' },
}
export const SEVERITY_LOOKS: Readonly<Record<Severity, Look>> = {
  error: { icon: 'cross', tone: 'invalid' },
  warning: { icon: 'warning', tone: 'warn' },
  info: { icon: 'list', tone: 'neutral' },
}

export function Badge(props: Look & { word: string }): JSX.Element {
  return (
    <span class={`badge ${props.tone}`}>
      <Icon name={props.icon} size={12} />
      {props.word}
    </span>
  )
}

/** Text from a file: visible characters only, and no more of it than `limit` until somebody asks for all. */
export function Text(props: { value: string; limit?: number }): JSX.Element {
  const [isWhole, setWhole] = useState(false)
  const { value, limit = 300 } = props
  if (value.length <= limit) return <bdi>{visible(value)}</bdi>
  return (
    <>
      <bdi class={isWhole ? 'whole' : ''}>{visible(isWhole ? value : clipped(value, limit))}</bdi>{' '}
      <button type="button" class="button link" onClick={() => setWhole(!isWhole)}>
        {isWhole ? 'less' : `all ${value.length.toLocaleString('en')} characters`}
      </button>
    </>
  )
}

/** Copies `text` as it is, and says so. */
export function CopyButton(props: { text: string; what: string; label?: string }): JSX.Element {
  const [state, setState] = useState<'' | 'copied' | 'failed'>('')
  useEffect(() => {
    if (!state) return
    const timer = setTimeout(() => setState(''), 2_000)
    return () => clearTimeout(timer)
  }, [state])
  const copy = async (): Promise<void> => {
    const isCopied = await copyText(props.text)
    setState(isCopied ? 'copied' : 'failed')
    announce(isCopied ? `${props.what} copied` : 'this browser does not let pages copy here')
  }
  const icon = state === 'copied' ? 'check' : state === 'failed' ? 'cross' : 'copy'
  return (
    <button type="button" class="button plain icon copy-button" title={`copy ${props.what}`} onClick={() => void copy()}>
      <Icon name={icon} size={12} />
      {props.label ? ` ${props.label}` : ''}
      <span class="sr-only">copy {props.what}</span>
    </button>
  )
}

/** A part of a panel with a heading. */
export function Section(props: { title: string; aside?: ComponentChildren; children: ComponentChildren }): JSX.Element {
  return (
    <section class="panel-section">
      <header>
        <h3>{props.title}</h3>
        {props.aside}
      </header>
      {props.children}
    </section>
  )
}

export interface Loaded<T> {
  /** What came last; stays while it is asked for anew. */
  readonly value: T | null
  readonly error: Error | null
  readonly isLoading: boolean
  readonly reload: () => void
}

/**
 * Ask for something, and again whenever `version` changes.
 *
 * @param identity what is asked for; another one drops what came before. Null: nothing is asked for.
 * @param version of the same thing: it is asked for quietly, the old answer stays until the new one is there.
 */
export function useRequest<T>(
  identity: string | null,
  version: unknown,
  request: (signal: AbortSignal) => Promise<T>,
): Loaded<T> {
  const [answer, setAnswer] = useState<{ identity: string | null; value: T | null; error: Error | null }>({
    identity,
    value: null,
    error: null,
  })
  const [attempt, setAttempt] = useState(0)
  const [isLoading, setLoading] = useState(true)
  const latest = useRef(request)
  latest.current = request
  // `attempt` and `version` ask anew
  useEffect(() => {
    if (identity === null) return
    const controller = new AbortController()
    setLoading(true)
    latest
      .current(controller.signal)
      .then((value) => {
        // An answer may be in just before the next question is asked.
        if (!controller.signal.aborted) setAnswer({ identity, value, error: null })
      })
      .catch((error: unknown) => {
        if (controller.signal.aborted || isAbort(error)) return
        const shown = error instanceof Error ? error : new Error(String(error))
        setAnswer((before) => ({ identity, value: before.identity === identity ? before.value : null, error: shown }))
      })
      .finally(() => {
        if (!controller.signal.aborted) setLoading(false)
      })
    return () => controller.abort()
  }, [identity, version, attempt])
  const isCurrent = answer.identity === identity
  return {
    value: isCurrent ? answer.value : null,
    error: isCurrent ? answer.error : null,
    isLoading,
    reload: () => setAttempt((count) => count + 1),
  }
}

/** What went wrong, and what to do about it. */
export function Failure(props: { error: Error; onRetry?: () => void }): JSX.Element {
  const { error } = props
  const remedy = error instanceof ApiError ? error.remedy : 'reload the page'
  const isSignedOut = error instanceof ApiError && error.status === 401
  return (
    <div class="failure" role="alert">
      <p>
        <Badge icon="warning" word={isSignedOut ? 'signed out' : 'not loaded'} tone="warn" /> <Text value={error.message} />
      </p>
      <p class="muted">
        <Text value={remedy} />
      </p>
      {props.onRetry && (
        <button type="button" class="button" onClick={props.onRetry}>
          try again
        </button>
      )}
    </div>
  )
}

/** The entry of a row, as the stream keeps it. */
export function useRow(id: string): Entry | undefined {
  const [, redraw] = useState(0)
  useEffect(() => store.subscribe(id, () => redraw((count) => count + 1)), [id])
  return store.get(id)
}

/** Counts changes of the store, at most one each `spacingMs`: what looks at all rows need not look each time. */
export function useStoreChanges(spacingMs = 1_000): number {
  const [count, setCount] = useState(0)
  useEffect(() => {
    let timer: ReturnType<typeof setTimeout> | null = null
    const stop = store.onChange(() => {
      timer ??= setTimeout(() => {
        timer = null
        setCount((before) => before + 1)
      }, spacingMs)
    })
    return () => {
      stop()
      if (timer !== null) clearTimeout(timer)
    }
  }, [spacingMs])
  return count
}

/** Changes with every heartbeat and every change of the catalog. */
export function useHeartbeat(): string {
  return useObservable(connection, ({ completeAsOf, revision }) => `${completeAsOf} ${revision}`)
}

/** Now, at least each `spacingMs`. */
export function useNow(spacingMs = 1_000): number {
  const [now, setNow] = useState(Date.now)
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), spacingMs)
    return () => clearInterval(timer)
  }, [spacingMs])
  return now
}
