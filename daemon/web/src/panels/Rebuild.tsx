/** A rebuild: asked for, confirmed where it costs something, followed until it is done. */

import type { JSX } from 'preact'
import { useEffect, useRef, useState } from 'preact/hooks'

import { announce } from '../announce'
import { requestRebuild } from '../api'
import type { RebuildAccepted, RebuildMode } from '../answers'
import { formatNumber } from '../format'
import { useObservable } from '../hooks'
import { connection } from '../state'
import { Failure } from './parts'

const WORDS: Readonly<Record<RebuildMode, string>> = { sweep: 'Sweep', full: 'Full rebuild' }

export function Rebuild({ mayAsk }: { mayAsk: boolean }): JSX.Element {
  const [accepted, setAccepted] = useState<RebuildAccepted | null>(null)
  const [isDone, setDone] = useState(false)
  const [error, setError] = useState<Error | null>(null)
  const confirmation = useRef<HTMLDialogElement>(null)
  const { status, sweep, rebuilt } = useObservable(connection, (value) => value)
  useEffect(() => {
    if (accepted === null || isDone || rebuilt?.token !== accepted.token) return
    setDone(true)
    announce(`${WORDS[accepted.mode]} done`)
  }, [accepted, isDone, rebuilt])
  const start = async (mode: RebuildMode): Promise<void> => {
    setError(null)
    setDone(false)
    try {
      setAccepted(await requestRebuild(mode))
      announce(`${WORDS[mode]} started`)
    } catch (reason) {
      setError(reason instanceof Error ? reason : new Error(String(reason)))
    }
  }
  if (!mayAsk) return <p class="muted">This sign-in may only read; the link that <code>ckptd token</code> prints may also ask for a rebuild.</p>
  const isRunning = accepted !== null && !isDone && status === 'live'
  return (
    <div class="rebuild">
      <div class="tool-row">
        <button type="button" class="button" disabled={isRunning} title="look at the whole tree; unchanged files are not read" onClick={() => void start('sweep')}>
          Sweep now
        </button>
        <button type="button" class="button" disabled={isRunning} onClick={() => confirmation.current?.showModal()}>
          Full rebuild…
        </button>
      </div>
      <p class="muted" role="status">
        {accepted && statusText(accepted, isDone, status === 'live', sweep)}
      </p>
      {isRunning && sweep && <progress value={sweep.done} max={sweep.total} aria-label="progress of the rebuild" />}
      {error && <Failure error={error} />}
      <dialog ref={confirmation} class="dialog" aria-labelledby="rebuild-title">
        <h2 id="rebuild-title">Read every checkpoint again?</h2>
        <p>
          Every file is inspected anew, and directories that are mounted now count for what belongs there: checkpoints of a
          disk that is away are forgotten. Readers keep seeing the catalog meanwhile.
        </p>
        <form method="dialog" class="tool-row">
          <button type="submit" class="button">
            Cancel
          </button>
          <button type="submit" class="button primary" onClick={() => void start('full')}>
            Rebuild
          </button>
        </form>
      </dialog>
    </div>
  )
}

function statusText(
  { mode }: RebuildAccepted,
  isDone: boolean,
  isLive: boolean,
  sweep: { readonly done: number; readonly total: number } | null,
): string {
  if (isDone) return `${WORDS[mode]} done.`
  if (!isLive) return `${WORDS[mode]} was started; this page is not connected and cannot follow it.`
  return sweep ? `${WORDS[mode]}: ${formatNumber(sweep.done)} of ${formatNumber(sweep.total)} paths` : `${WORDS[mode]} started…`
}
