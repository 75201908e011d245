/** Preact's side of what is framework-free: components that follow an observable. */

import { useEffect, useReducer, useRef } from 'preact/hooks'

import { app, type AppState, type Observable } from './state'

/** What `select` says of an observable's value; the component is drawn anew when that changes. */
export function useObservable<T, S>(observable: Observable<T>, select: (value: T) => S): S {
  const [, redraw] = useReducer((count: number) => count + 1, 0)
  const selected = select(observable.get())
  const latest = useRef({ select, selected })
  latest.current = { select, selected }
  useEffect(() => {
    const check = (): void => {
      const { select: selectNow, selected: shown } = latest.current
      if (!Object.is(selectNow(observable.get()), shown)) redraw(undefined)
    }
    check() // it may have changed between drawing and this effect
    return observable.subscribe(check)
  }, [observable])
  return selected
}

/** A part of the page's state. */
export function useApp<S>(select: (state: AppState) => S): S {
  return useObservable(app, select)
}
