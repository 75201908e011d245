/** The page's one store of rows. */

import { RowStore } from './rows'

export const store = new RowStore()
