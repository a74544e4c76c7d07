// node build.mjs lab        src/index.ts -> lib/index.js, of which jupyter-builder makes the extension
// node build.mjs panel      src/panel.ts -> kalavai_nb/panel/static, what the panel in a notebook shows
// node build.mjs licenses   adds what lib/index.js contains to the licenses beside the extension
// node build.mjs tests      tests/*.test.ts(x) -> build/tests, for node --test
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { build } from 'esbuild';

const SHARED = { bundle: true, jsx: 'automatic', jsxImportSource: 'preact', logLevel: 'warning', target: 'es2020' };
const PANEL = { ...SHARED, outdir: '../kalavai_nb/panel/static', minify: true };
const CONTENT = 'build/content.json';
const LICENSES = '../kalavai_nb/labextension/static/third-party-licenses.json';

const steps = {
  async lab() {
    // what JupyterLab provides stays an import: one copy of it for all extensions
    const external = ['@jupyterlab/*', '@lumino/*'];
    const options = { ...SHARED, entryPoints: ['src/index.ts'], outfile: 'lib/index.js', format: 'esm', external };
    const { metafile } = await build({ ...options, metafile: true });
    mkdirSync('build', { recursive: true });
    writeFileSync(CONTENT, JSON.stringify(packages(metafile)));
  },
  async panel() {
    const notice = '/*! Contains Preact, copyright (c) 2015-present Jason Miller, MIT license */';
    await build({ ...PANEL, entryPoints: { panel: 'src/panel.ts' }, format: 'esm', banner: { js: notice } });
    await build({ ...PANEL, entryPoints: { panel: 'style/index.css' } });
  },
  async licenses() {
    const all = JSON.parse(readFileSync(LICENSES, 'utf8'));
    for (const name of JSON.parse(readFileSync(CONTENT, 'utf8'))) {
      const { version, license } = JSON.parse(readFileSync(`node_modules/${name}/package.json`, 'utf8'));
      const extractedText = readFileSync(`node_modules/${name}/LICENSE`, 'utf8');
      all.packages.push({ name, versionInfo: version, licenseId: license, extractedText });
    }
    writeFileSync(LICENSES, JSON.stringify(all, null, 2));
  },
  async tests() {
    const names = readdirSync('tests').filter(name => /\.test\.tsx?$/.test(name));
    await build({
      ...SHARED,
      entryPoints: names.map(name => `tests/${name}`),
      outdir: 'build/tests',
      outExtension: { '.js': '.mjs' },
      format: 'esm',
      packages: 'external',
      platform: 'node',
      sourcemap: 'inline'
    });
  }
};

/** Names of the packages that a build took in. */
function packages(metafile) {
  const found = Object.keys(metafile.inputs).map(path => /(?:.*\/)?node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(path)?.[1]);
  return [...new Set(found.filter(Boolean))].sort();
}

for (const name of process.argv.slice(2)) {
  await steps[name]();
}
