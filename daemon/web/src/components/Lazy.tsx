/** Panels are loaded when first shown; the table does not wait for them. */

import type { ComponentType } from 'preact'
import { useEffect, useState } from 'preact/hooks'

type Panels = typeof import('../panels')

/** Draws the panel that `pick` takes out of the panels' module. */
export function Lazy<P extends object>({ pick, ...props }: { pick: (panels: Panels) => ComponentType<P> } & P) {
  const [panels, setPanels] = useState<Panels | null>(null)
  const [hasFailed, setFailed] = useState(false)
  useEffect(() => {
    import('../panels').then(setPanels, () => setFailed(true))
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
