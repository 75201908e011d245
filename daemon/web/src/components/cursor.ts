/** The table's cursor: which row is active; above the first one, which header. Pure. */

export interface Cursor {
  /** -1: the headers. */
  readonly row: number
  /** Of the headers. */
  readonly column: number
}

export type TableCommand =
  | 'next' | 'previous' | 'first' | 'last' | 'pageDown' | 'pageUp' | 'left' | 'right' | 'select' | 'open'

/** Where the cursor is after a command. `page` is the number of rows on the screen. */
export function moveCursor(
  cursor: Cursor, command: TableCommand, size: { readonly rows: number; readonly columns: number; readonly page: number },
): Cursor {
  const to = (row: number): Cursor => ({ ...cursor, row: Math.max(size.rows ? 0 : -1, Math.min(size.rows - 1, row)) })
  switch (command) {
    case 'next':
      return to(cursor.row + 1)
    case 'previous':
      return cursor.row <= 0 ? { ...cursor, row: -1 } : to(cursor.row - 1)
    case 'first':
      return to(0)
    case 'last':
      return to(size.rows - 1)
    case 'pageDown':
      return to(cursor.row + size.page)
    case 'pageUp':
      return to(cursor.row - size.page)
    case 'left':
      return { ...cursor, column: cursor.row < 0 ? Math.max(0, cursor.column - 1) : cursor.column }
    case 'right':
      return { ...cursor, column: cursor.row < 0 ? Math.min(size.columns - 1, cursor.column + 1) : cursor.column }
    default:
      return cursor
  }
}
