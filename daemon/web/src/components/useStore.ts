/** Components that follow the store. */

import { useEffect, useReducer } from 'preact/hooks'

import { store } from '../store'

/** Draw the component anew whenever what is shown changes. */
export function useStore(): void {
  const [, redraw] = useReducer((count: number) => count + 1, 0)
  useEffect(() => store.onChange(() => redraw(undefined)), [])
}
