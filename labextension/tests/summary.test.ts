import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { TranslationBundle } from '@jupyterlab/translation';
import { line, Summary } from '../src/lab/summary';

const english = {
  __: (text: string) => text,
  _n: (one: string, many: string, count: number) => (count === 1 ? one : many).replace('%1', String(count))
} as unknown as TranslationBundle;

const summary = (changes: Partial<Summary>): Summary => ({ pools: 1, devices: 1, gpus: 1, alerts: 0, ...changes });

for (const [changes, wanted] of [
  [{ pools: 2, devices: 6, gpus: 6, utilisation: 0.708 }, '2 pools · 6 GPUs · 71 %'],
  [{ utilisation: 0 }, '1 pool · 1 GPU · 0 %'],
  [{}, '1 pool · 1 GPU · n/a'],
  [{ devices: 4, gpus: 0, utilisation: 0.25 }, '1 pool · 4 CPU devices · 25 %'],
  [{ utilisation: 1, alerts: 2 }, '1 pool · 1 GPU · 100 % · 2 alerts']
] as [Partial<Summary>, string][]) {
  test(wanted, () => assert.equal(line(summary(changes), english), wanted));
}
