// All pools in one line: "2 pools · 6 GPUs · 71 %".
import type { TranslationBundle } from '@jupyterlab/translation';

/** What GET summary gives; utilisation is 0..1, absent where it is not known. */
export interface Summary {
  pools: number;
  devices: number;
  gpus: number;
  utilisation?: number;
  alerts: number;
}

export function line(summary: Summary, words: TranslationBundle): string {
  const { pools, devices, gpus, utilisation, alerts } = summary;
  const parts = [words._n('%1 pool', '%1 pools', pools, pools)];
  if (gpus > 0) {
    parts.push(words._n('%1 GPU', '%1 GPUs', gpus, gpus));
  } else {
    parts.push(words._n('%1 CPU device', '%1 CPU devices', devices, devices)); // stand-ins are never dressed up
  }
  parts.push(utilisation === undefined ? words.__('n/a') : `${Math.round(100 * utilisation)} %`);
  if (alerts > 0) {
    parts.push(words._n('%1 alert', '%1 alerts', alerts, alerts));
  }
  return parts.join(' · ');
}
