/** CopyButton: puts a text on the clipboard and says so. */

import { useEffect, useRef, useState } from 'preact/hooks'

import { announce } from '../announce'
import { Icon } from './Icon'

/** How long the button shows that it has copied. */
const SHOWN_MS = 1_500

interface Props {
  readonly text: string
  readonly name: string
  /** Where Tab stops; -1 in the table, whose one stop is the grid itself. */
  readonly tabIndex?: number
}

export function CopyButton({ text, name, tabIndex = -1 }: Props) {
  const [isCopied, setCopied] = useState(false)
  const timer = useRef<ReturnType<typeof setTimeout> | undefined>(undefined)
  useEffect(() => () => clearTimeout(timer.current), [])
  const copy = async (event: Event): Promise<void> => {
    event.stopPropagation()
    const hasCopied = await copyText(text)
    announce(hasCopied ? 'copied' : 'this browser does not let pages copy here')
    setCopied(hasCopied)
    clearTimeout(timer.current)
    timer.current = setTimeout(() => setCopied(false), SHOWN_MS)
  }
  return (
    <button type="button" class="copy button plain icon" tabIndex={tabIndex} title={isCopied ? 'copied' : name}
      aria-label={name} onClick={(event) => void copy(event)}>
      <Icon name={isCopied ? 'check' : 'copy'} size={12} />
    </button>
  )
}

/** Whether it could be copied. Over plain HTTP from another machine, browsers have no clipboard for pages but the old one. */
export async function copyText(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text)
    return true
  } catch {
    const area = document.createElement('textarea')
    area.value = text
    area.className = 'sr-only'
    const focused = document.activeElement
    document.body.append(area)
    area.select()
    const hasCopied = document.execCommand('copy')
    area.remove()
    if (focused instanceof HTMLElement) focused.focus()
    return hasCopied
  }
}
