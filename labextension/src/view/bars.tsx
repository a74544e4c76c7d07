// Numbers as pictures: a bar with its number beside it, and the line of the last ten minutes.
import { ComponentChildren, JSX } from 'preact';
import { pure } from './pure';

interface BarProps {
  label: string;
  text: string;
  fraction: number | undefined;
  kind: 'use' | 'memory';
  /** Whether its text may have three digits more. */
  large?: boolean;
}

// from here on memory is a matter of the next few steps, as the alert of the head says
const NEARLY_FULL = 0.95;

/** The text has a place of fixed width, so that nothing moves when numbers change. */
export const Bar = pure(({ label, text, fraction = NaN, kind, large }: BarProps): JSX.Element => {
  const known = Number.isFinite(fraction);
  const percents = known ? Math.round(100 * fraction) : 0;
  const full = kind === 'memory' && fraction >= NEARLY_FULL;
  const values = { 'aria-valuenow': percents, 'aria-valuemin': 0, 'aria-valuemax': 100, 'aria-valuetext': text };
  // a meter has to have a value
  const role = known
    ? { role: 'meter' as const, 'aria-label': label, ...values }
    : { role: 'img' as const, 'aria-label': `${label}: ${text}` };
  return (
    <span class={`kn-meter kn-meter-${kind}${large ? ' kn-large' : ''}`} {...role}>
      <span class="kn-bar">
        <span class={`kn-fill kn-fill-${kind}${full ? ' kn-full' : ''}`} style={{ width: `${percents}%` }} />
      </span>
      <span class="kn-number">{text}</span>
    </span>
  );
});

interface ProgressProps {
  label: string;
  text: string;
  total: number;
  /** How many there are of each kind, from left to right; of these, "running" are not done. */
  parts: { kind: 'use' | 'failed' | 'running'; count: number }[];
}

/** How far it has come, with what failed and what is under way as parts of their own. */
export function Progress({ label, text, total, parts }: ProgressProps): JSX.Element {
  const done = parts.reduce((sum, { kind, count }) => sum + (kind === 'running' ? 0 : count), 0);
  return (
    <div
      class="kn-bar kn-progress"
      role="progressbar"
      aria-label={label}
      aria-valuemin={0}
      aria-valuemax={total}
      aria-valuenow={Math.min(done, total)}
      aria-valuetext={text}
    >
      {parts.map(({ kind, count }) => (
        <span key={kind} class={`kn-fill kn-fill-${kind}`} style={{ width: `${total ? (100 * count) / total : 0}%` }} />
      ))}
    </div>
  );
}

interface SparkProps {
  utilisation: number[] | undefined;
  memory: number[] | undefined;
  label: string;
}

export const Spark = pure(({ utilisation, memory, label }: SparkProps): JSX.Element => {
  const line = path(utilisation);
  return (
    <svg class="kn-spark" viewBox="0 0 59 20" preserveAspectRatio="none" role="img" aria-label={label}>
      <path class="kn-spark-area" d={area(line)} />
      <path class="kn-spark-memory" d={path(memory)} />
      <path class="kn-spark-use" d={line} />
    </svg>
  );
});

/** A line through what is known, with gaps where nothing was. */
export function path(percents: number[] | undefined): string {
  let line = '';
  let drawing = false;
  (Array.isArray(percents) ? percents : []).forEach((value, x) => {
    if (value >= 0) {
      const y = 19 - (18 * Math.min(100, value)) / 100;
      // a point alone is a line of no length, with round ends
      line += `${drawing ? 'L' : 'M'}${x} ${y.toFixed(1)}${drawing ? '' : 'h0'}`;
    }
    drawing = value >= 0;
  });
  return line;
}

/** What lies between such a line and the ground. */
export function area(line: string): string {
  return line
    .split('M')
    .slice(1)
    .map(piece => {
      const first = piece.slice(0, piece.indexOf(' '));
      const last = piece.slice(piece.lastIndexOf('L') + 1, piece.lastIndexOf(' '));
      return `M${piece}L${last} 20L${first} 20Z`;
    })
    .join('');
}

/** A sentence that asks to be read, with a sign that says so without colour. */
export function Warning({ children }: { children: ComponentChildren }): JSX.Element {
  return (
    <>
      <span class="kn-sign" aria-hidden="true">
        {'⚠ '}
      </span>
      <span>{children}</span>
    </>
  );
}
