/** What is beside the table: details, comparison, health and help; one chunk, fetched when the first of them is shown. */

import '../styles/panels.css'
import '../styles/compare.css'
import '../styles/health.css'

export { Compare } from './Compare'
export { Detail } from './Detail'
export { Health } from './Health'
export { Help } from './Help'
