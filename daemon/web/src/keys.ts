/** The keys of the page: what each does, once, for the handler and for the list that `?` shows. */

export type Command =
  | 'search' | 'next' | 'previous' | 'first' | 'last' | 'pageDown' | 'pageUp' | 'select' | 'open' | 'compare' | 'close'
  | 'help'

export interface KeyBinding {
  readonly keys: readonly string[]
  readonly command: Command
  readonly does: string
}

export const KEYS: readonly KeyBinding[] = [
  { keys: ['/'], command: 'search', does: 'search' },
  { keys: ['j', 'ArrowDown'], command: 'next', does: 'next row' },
  { keys: ['k', 'ArrowUp'], command: 'previous', does: 'previous row; above the first, the headers: ← → and Enter sort' },
  { keys: ['Home'], command: 'first', does: 'first row' },
  { keys: ['End'], command: 'last', does: 'last row' },
  { keys: ['PageDown'], command: 'pageDown', does: 'one screen down' },
  { keys: ['PageUp'], command: 'pageUp', does: 'one screen up' },
  { keys: ['x', ' '], command: 'select', does: 'select, or no longer' },
  { keys: ['Enter'], command: 'open', does: 'open the details' },
  { keys: ['c'], command: 'compare', does: 'compare what is selected' },
  { keys: ['Escape'], command: 'close', does: 'close what is open; from the search, back to the table' },
  { keys: ['?'], command: 'help', does: 'these keys' },
]

const COMMANDS = new Map(KEYS.flatMap(({ keys, command }) => keys.map((key) => [key, command] as const)))

/** Letters and signs work anywhere on the page; these only where the table has the focus, buttons need them, too. */
const OF_THE_TABLE: ReadonlySet<string> = new Set(
  ['ArrowDown', 'ArrowUp', 'Home', 'End', 'PageDown', 'PageUp', ' ', 'Enter'],
)

interface Pressed {
  readonly key: string
  readonly ctrlKey: boolean
  readonly metaKey: boolean
  readonly altKey: boolean
}

/** The command of a key; null while typing, and for what belongs to the browser. */
export function commandOf(pressed: Pressed, where: { isTyping: boolean; isInTable: boolean }): Command | null {
  if (pressed.ctrlKey || pressed.metaKey || pressed.altKey) return null
  if (where.isTyping || (OF_THE_TABLE.has(pressed.key) && !where.isInTable)) return null
  return COMMANDS.get(pressed.key) ?? null
}

/** Whether keys pressed in an element are text for it. */
export function isTypingIn(target: EventTarget | null): boolean {
  if (!(target instanceof HTMLElement)) return false
  if (target.isContentEditable || target instanceof HTMLTextAreaElement || target instanceof HTMLSelectElement) return true
  return target instanceof HTMLInputElement && !['checkbox', 'radio', 'button', 'range'].includes(target.type)
}
