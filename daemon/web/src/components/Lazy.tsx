/** Panels are loaded when first shown; the table does not wait for them. */

import type { ComponentType } from 'preact'
import { useEffect, useState } from 'preact/hooks'

interface Panels {
  readonly Detail: ComponentType<{ id: string; onClose: () => void }>
  readonly Compare: ComponentType<{ ids: readonly string[] }>
  readonly Health: ComponentType<object>
  readonly Help: ComponentType<{ onClose: () => void }>
}

const modules = import.meta.glob<Panels>('../panels/index.tsx')

async function loadPanels(): Promise<Panels> {
  const load = modules['../panels/index.tsx']
  if (load === undefined) throw new Error('this page was built without its panels')
  return load()
}

/** Draws the panel that `pick` takes out of the panels' module. */
export function Lazy<P extends object>({ pick, ...props }: { pick: (panels: Panels) => ComponentType<P> } & P) {
  const [panels, setPanels] = useState<Panels | null>(null)
  const [hasFailed, setFailed] = useState(false)
  useEffect(() => {
    loadPanels().then(setPanels, () => setFailed(true))
  }, [])
  if (hasFailed) {
    return (
      <div class="nothing" role="alert">
        <p>This part of the page could not be loaded: ckptd was updated, or is not reachable.</p>
        <button type="button" class="button" onClick={() => location.reload()}>Load the page anew</button>
      </div>
    )
  }
  if (panels === null) return <p class="muted panel-loading" role="status">Loading…</p>
  const Panel = pick(panels)
  return <Panel {...(props as unknown as P)} />
}
