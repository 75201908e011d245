import { resolve } from 'node:path';
import { defineConfig } from 'vitest/config';

const here = import.meta.dirname;

/**
 * Two builds into dist/: the page, and (mode `client`) the stream client as one plain module, which studios import
 * under its own name. As a chunk of the page it would share code with it under names that change.
 */
export default defineConfig(({ mode }) => ({
  // The page may lie below a path prefix: nothing in it may begin with a slash.
  base: './',
  publicDir: mode === 'client' ? false : 'public',
  build: {
    target: 'es2022',
    outDir: 'dist',
    emptyOutDir: mode !== 'client',
    // Every browser that runs the page knows modulepreload; the policy forbids data: sources for all but images.
    modulePreload: { polyfill: false },
    assetsInlineLimit: 0,
    reportCompressedSize: false,
    ...(mode === 'client' ? clientBuild() : {}),
  },
  test: {
    include: ['src/**/*.test.ts', 'src/**/*.test.tsx'],
    environment: 'node',
    // What a slow machine under load needs; nothing here asserts a time.
    testTimeout: 60_000,
  },
}));

function clientBuild() {
  return {
    // Its readers are people, too, who want to know what it does.
    minify: false,
    lib: { entry: resolve(here, 'src/client.ts'), formats: ['es' as const], fileName: () => 'client.js' },
  };
}
