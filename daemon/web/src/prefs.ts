/** What one reader prefers, in this browser: columns, theme, density. Not in the address: links show data, not taste. */

import { app, type Density, Observable, type Theme, update } from './state'

export interface ColumnChoice {
  readonly id: string
  readonly isShown: boolean
}

/** Order and choice of columns; empty: as they are by default. */
export const columnChoices = new Observable<readonly ColumnChoice[]>([])

const KEY = 'ckptd.page'

interface Stored {
  readonly theme?: Theme
  readonly density?: Density
  readonly columns?: readonly ColumnChoice[]
}

/** What was kept; whatever cannot be used (another version's, a person's edits) is as if it were not there. */
export function parsePrefs(text: string | null): Stored {
  let stored: unknown
  try {
    stored = JSON.parse(text ?? 'null')
  } catch {
    return {}
  }
  if (typeof stored !== 'object' || stored === null) return {}
  const { theme, density, columns } = stored as Record<string, unknown>
  return {
    ...(theme === 'light' || theme === 'dark' || theme === 'auto' ? { theme } : {}),
    ...(density === 32 || density === 40 ? { density } : {}),
    ...(Array.isArray(columns) ? { columns: columns.filter(isChoice) } : {}),
  }
}

function isChoice(value: unknown): value is ColumnChoice {
  if (typeof value !== 'object' || value === null) return false
  const { id, isShown } = value as Record<string, unknown>
  return typeof id === 'string' && typeof isShown === 'boolean'
}

/** Take over what was kept, keep what changes, and show theme and density on the document. */
export function followPrefs(): void {
  const kept = parsePrefs(read())
  columnChoices.set(kept.columns ?? [])
  update({ theme: kept.theme ?? 'auto', density: kept.density ?? 32 })
  const apply = (): void => {
    const { theme, density } = app.get()
    const { dataset } = document.documentElement
    if (theme === 'auto') delete dataset['theme']
    else dataset['theme'] = theme
    dataset['density'] = String(density)
    write({ theme, density, columns: columnChoices.get() })
  }
  apply()
  app.subscribe(apply)
  columnChoices.subscribe(apply)
}

/** Storage may be forbidden altogether: then nothing is kept. */
function read(): string | null {
  try {
    return localStorage.getItem(KEY)
  } catch {
    return null
  }
}

let written: string | null = null

function write(stored: Stored): void {
  const text = JSON.stringify(stored)
  if (text === written) return
  written = text
  try {
    localStorage.setItem(KEY, text)
  } catch {
    // As in `read`.
  }
}
