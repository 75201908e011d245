/** Popover: a button that opens a small panel; Esc, a click elsewhere or leaving by Tab closes it. */

import type { ComponentChildren } from 'preact'
import { useEffect, useId, useLayoutEffect, useRef, useState } from 'preact/hooks'

interface Props {
  /** What the button shows. */
  readonly label: ComponentChildren
  /** What the button is called, where that is not its text. */
  readonly name?: string
  readonly class?: string
  /** At which edge of the button the panel begins. */
  readonly align?: 'start' | 'end'
  /** Called anew at each opening. */
  readonly children: (close: () => void) => ComponentChildren
}

export function Popover({ label, name, class: className = 'button', align = 'start', children }: Props) {
  const [isOpen, setOpen] = useState(false)
  const root = useRef<HTMLDivElement>(null)
  const button = useRef<HTMLButtonElement>(null)
  const id = useId()
  const close = (): void => {
    setOpen(false)
    button.current?.focus()
  }
  useEffect(() => {
    if (!isOpen) return
    firstControl(root.current?.querySelector('.popover'))?.focus()
    const closeOutside = (event: Event): void => {
      if (!root.current?.contains(event.target as Node)) setOpen(false)
    }
    document.addEventListener('pointerdown', closeOutside)
    document.addEventListener('focusin', closeOutside)
    return () => {
      document.removeEventListener('pointerdown', closeOutside)
      document.removeEventListener('focusin', closeOutside)
    }
  }, [isOpen])
  useLayoutEffect(() => {
    if (isOpen) keepOnScreen(root.current?.querySelector<HTMLElement>('.popover'))
  }, [isOpen])
  const closeByKey = (event: KeyboardEvent): void => {
    if (event.key !== 'Escape' || !isOpen) return
    event.stopPropagation()
    close()
  }
  return (
    <div class="popover-root" ref={root} onKeyDown={closeByKey}>
      <button type="button" class={className} ref={button} aria-expanded={isOpen} aria-controls={isOpen ? id : undefined}
        aria-haspopup="dialog" aria-label={name} title={name} onClick={() => setOpen(!isOpen)}>
        {label}
      </button>
      {isOpen && (
        <div class={`popover ${align}`} id={id} role="dialog" aria-label={name ?? 'menu'}>
          {children(close)}
        </div>
      )}
    </div>
  )
}

/** Pixels between a panel and the window's edge. */
const MARGIN = 8

/** Move a panel that would end beyond the window's edges, where nobody could scroll to it. */
function keepOnScreen(panel: HTMLElement | null | undefined): void {
  if (!panel) return
  const { left, right } = panel.getBoundingClientRect()
  const beyond = Math.max(0, right - (document.documentElement.clientWidth - MARGIN))
  const shift = Math.min(beyond, left - MARGIN)
  if (shift !== 0) panel.style.translate = `${-shift}px`
}

function firstControl(panel: Element | null | undefined): HTMLElement | null {
  return panel?.querySelector<HTMLElement>('[autofocus], input, select, button') ?? null
}
