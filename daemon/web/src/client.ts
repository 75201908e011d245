/** The stream client. */
export const API_VERSION = 1;
