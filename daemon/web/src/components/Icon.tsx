/** Icons: small strokes in the text's colour, never without a word beside them or as their button's label. */

const PATHS = {
  check: 'M3 8.5l3.5 3.5L13 4.5',
  cross: 'M4 4l8 8M12 4l-8 8',
  warning: 'M8 2L1.5 13.5h13zM8 6.5v3.5M8 11.8v.4',
  pen: 'M2.5 13.5l1-3.5 7-7 2.5 2.5-7 7zM9 4.5l2.5 2.5',
  offline: 'M2 2l12 12M5 11.5h6.5a2.7 2.7 0 00.8-5.3M9.8 4.3A4 4 0 004.6 7a2.4 2.4 0 00-1 4',
  copy: 'M5.5 5.5v-3h8v8h-3M2.5 5.5h8v8h-8z',
  search: 'M7 12A5 5 0 107 2a5 5 0 000 10zM10.7 10.7L14 14',
  filter: 'M2 3h12l-4.5 5.5V13l-3-1.5v-3z',
  columns: 'M2 3h12v10H2zM6 3v10M10 3v10',
  pulse: 'M1.5 8h3l2-5 3 10 2-5h3',
  sun: 'M8 11a3 3 0 100-6 3 3 0 000 6zM8 1v1.5M8 13.5V15M1 8h1.5M13.5 8H15M3 3l1 1M12 12l1 1M13 3l-1 1M4 12l-1 1',
  moon: 'M13.5 9.5A6 6 0 016.5 2.5a6 6 0 107 7z',
  auto: 'M8 2a6 6 0 100 12zM8 2a6 6 0 010 12',
  up: 'M8 13V3M4 7l4-4 4 4',
  down: 'M8 3v10M4 9l4 4 4-4',
  list: 'M2 4h12M2 8h12M2 12h12',
} as const

export type IconName = keyof typeof PATHS

export function Icon({ name, size = 14 }: { name: IconName; size?: number }) {
  return (
    <svg class="icon" width={size} height={size} viewBox="0 0 16 16" fill="none" stroke="currentColor" stroke-width="1.5"
      stroke-linecap="round" stroke-linejoin="round" aria-hidden="true" focusable="false">
      <path d={PATHS[name]} />
    </svg>
  )
}
