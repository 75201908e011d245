/** Text from files, made honest: characters that hide, reorder or break text are shown by their number. */

/**
 * Controls (Cc); format characters, among them those that change the order of text (Cf; Unicode Standard Annex 9,
 * table 1; Trojan Source, CVE-2021-42574); line and paragraph separators; halves of surrogate pairs (Cs); and letters
 * and marks that draw nothing.
 */
const INVISIBLE = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}\u115f\u1160\u3164\uffa0]|\u034f|\u17b4|\u17b5|\u180b|\u180c|\u180d/gu

const NAMED: Readonly<Record<string, string>> = { '\n': '\\n', '\r': '\\r', '\t': '\\t' }

/** `text` with every such character written as `\u202e`. What is left reads in the order in which it is stored. */
export function visible(text: string): string {
  return text.replace(INVISIBLE, (character) => NAMED[character] ?? escaped(character))
}

function escaped(character: string): string {
  const point = character.codePointAt(0) ?? 0
  return point > 0xffff ? `\\u{${point.toString(16)}}` : `\\u${point.toString(16).padStart(4, '0')}`
}

/** The beginning of `text`, where it is longer than `limit` characters; never half a character. */
export function clipped(text: string, limit: number): string {
  if (text.length <= limit) return text
  const end = /[\ud800-\udbff]/.test(text.charAt(limit - 1)) ? limit - 1 : limit
  return `${text.slice(0, end)}…`
}

/** `text` without its middle, where it is longer than `limit` characters: what tells names apart is at their ends. */
export function clippedName(text: string, limit: number): string {
  if (text.length <= limit) return text
  const half = Math.floor((limit - 1) / 2)
  const end = text.slice(-half)
  return `${clipped(text, half)}${/^[\udc00-\udfff]/.test(end) ? end.slice(1) : end}`
}
