/** What waits while the reader looks at something: "14 new · Show". */

import { useEffect, useReducer } from 'preact/hooks'

import { formatNumber } from '../format'
import { store } from '../store'

export function NewRows({ onShow }: { onShow: () => void }) {
  const [, redraw] = useReducer((count: number) => count + 1, 0)
  useEffect(() => store.onChange(() => redraw(undefined)), [])
  const { added, moved } = store.waiting
  if (!added && !moved) return null
  const show = (): void => {
    store.showWaiting()
    onShow()
  }
  const text = added ? `${formatNumber(added)} new` : `${formatNumber(moved)} changed`
  return (
    // The focus stays in the table, so that keys go on working.
    <button type="button" class="new-rows" onMouseDown={(event) => event.preventDefault()} onClick={show}>
      {text} · Show
    </button>
  )
}
