/** Components that are drawn anew only when one of their properties is another one. */

import { Component, type ComponentType, h } from 'preact'

export function memo<P extends object>(Inner: (props: P) => preact.VNode | null): ComponentType<P> {
  return class Memo extends Component<P> {
    override shouldComponentUpdate(next: Readonly<P>): boolean {
      const now = this.props
      return (Object.keys(next) as (keyof P)[]).some((key) => !isSame(key, next[key], now[key as never]))
    }

    override render() {
      return h(Inner as ComponentType<P>, this.props as P)
    }
  }
}

/** Handlers are made anew at each drawing and do the same. */
function isSame(key: unknown, a: unknown, b: unknown): boolean {
  return Object.is(a, b) || (typeof a === 'function' && typeof key === 'string' && key.startsWith('on'))
}
