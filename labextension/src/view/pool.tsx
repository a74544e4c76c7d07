// One pool: what is wrong, its machines, what runs, what happened.
import { JSX } from 'preact';
import { Pool, PoolEvent } from '../state';
import { Warning } from './bars';
import { InviteButton } from './buttons';
import { Machines } from './machines';
import { Guard, pure, useTranslate } from './pure';
import { entries, items } from './records';
import { Running } from './running';
import { Translate } from './types';
import { honesty, isLive, minutes } from './words';

const SHOWN_EVENTS = 20;
// a machine that is lost has a line for each of its devices
const SHOWN_LINES = 5;

interface PoolProps {
  id: string;
  pool: Pool;
  part?: string;
}

export const PoolSection = pure(({ id, pool, part }: PoolProps): JSX.Element => {
  const translate = useTranslate();
  const snapshot = pool.snapshot ?? {};
  const owners = pool.owners ?? {};
  const name = snapshot.pool ?? id;
  const inviter = entries(owners).find(([, owner]) => owner.can_invite && owner.link === 'live')?.[0];
  const whole = part !== 'sweep';
  const running = (
    <Guard>
      <Running pool={id} snapshot={snapshot} owners={owners} />
    </Guard>
  );
  return (
    <section class={`kn-pool${isLive(pool) ? '' : ' kn-old'}`} aria-label={translate('Pool %1', name)}>
      {whole && (
        <h3 class="kn-name kn-poolname" title={name}>
          {name}
        </h3>
      )}
      <Guard>
        <Lines lines={() => honesty(pool, translate)} kind="kn-honest" label={translate('Not up to date')} />
      </Guard>
      <Guard>
        <Lines
          lines={() => entries(snapshot.alerts).map(([key, alert]) => ({ key, text: alert.text }))}
          kind="kn-alert"
          label={translate('Alerts')}
        />
      </Guard>
      {!whole && running}
      <Guard>
        <Machines snapshot={snapshot} owners={owners} />
      </Guard>
      {whole && running}
      {whole && (
        <Guard>
          <Events events={snapshot.events} now={snapshot.time ?? 0} />
        </Guard>
      )}
      {whole && inviter && (
        <div class="kn-actions">
          <InviteButton pool={id} owner={inviter} />
        </div>
      )}
    </section>
  );
});

interface Line {
  key: string;
  text: string;
}

interface LinesProps {
  /** Called while this is drawn, so that what it stumbles over costs this part alone. */
  lines: () => Line[];
  kind: string;
  label: string;
}

function Lines({ lines, kind, label }: LinesProps): JSX.Element | null {
  const translate = useTranslate();
  const all = lines();
  const first = all.length > SHOWN_LINES + 1 ? all.slice(0, SHOWN_LINES) : all;
  const rest = all.slice(first.length);
  const item = ({ key, text }: Line) => (
    <li key={key}>
      <Warning>{text}</Warning>
    </li>
  );
  return all.length ? (
    <div class={`kn-lines ${kind}`}>
      <ul aria-label={label}>{first.map(item)}</ul>
      {rest.length > 0 && (
        <details>
          <summary>{translate('%1 more', rest.length)}</summary>
          <ul aria-label={translate('%1, more of them', label)}>{rest.map(item)}</ul>
        </details>
      )}
    </div>
  ) : null;
}

function Events({ events, now }: { events: PoolEvent[] | undefined; now: number }): JSX.Element | null {
  const translate = useTranslate();
  const known = items(events).filter(event => event.text).slice(-SHOWN_EVENTS).reverse();
  return known.length ? (
    <details class="kn-events">
      <summary>{translate('What happened')}</summary>
      <ul class="kn-list">
        {known.map((event, place) => (
          <li class="kn-event" key={known.length - place}>
            <span class="kn-muted kn-when">{ago(now - event.time, translate)}</span> <span>{event.text}</span>
          </li>
        ))}
      </ul>
    </details>
  ) : null;
}

function ago(seconds: number, translate: Translate): string {
  return seconds < 60 ? translate('just now') : translate('%1 ago', minutes(seconds));
}
