/** How health looks, everywhere on the page: an icon and a tone, always with a word beside them. */

import type { Health } from '../wire'
import type { IconName } from './Icon'

export type Tone = 'ok' | 'warn' | 'invalid' | 'neutral'

export interface Look {
  readonly icon: IconName
  readonly tone: Tone
}

export const HEALTH_LOOKS: Readonly<Record<Health, Look>> = {
  valid: { icon: 'check', tone: 'ok' },
  invalid: { icon: 'cross', tone: 'invalid' },
  writing: { icon: 'pen', tone: 'neutral' },
  offline: { icon: 'offline', tone: 'warn' },
}
