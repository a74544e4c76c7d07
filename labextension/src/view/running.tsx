// What runs in a pool, and what waits: cells, sweeps, models, idle sessions, the queue.
import { FunctionComponent, JSX } from 'preact';
import { Cell, Device, Lease, Model, Owner, Snapshot, Sweep, Waiting } from '../state';
import { Progress, Warning } from './bars';
import { OrderButton } from './buttons';
import { Guard, useTranslate } from './pure';
import { entries } from './records';
import { duration, who, whole } from './words';

export interface RunningProps {
  pool: string;
  snapshot: Partial<Snapshot>;
  owners: Record<string, Owner>;
}

export function Running({ pool, snapshot, owners }: RunningProps): JSX.Element {
  const translate = useTranslate();
  const idle = entries(snapshot.leases).filter(([, lease]) => !lease.running && lease.kind === 'session' && lease.owner in owners);
  const shared: Shared = {
    pool,
    label: (owner, label) => who(owner, label ?? snapshot.owners?.[owner]?.label ?? '', owners, translate),
    // one that has ended takes no orders
    mine: owner => owner in owners && owners[owner].link !== 'ended',
    place: id => placeOf(id, snapshot.devices ?? {}),
    now: snapshot.time ?? 0
  };
  return (
    <div class="kn-running">
      <List title={translate('Cells')} items={entries(snapshot.cells)} shared={shared} row={CellRow} />
      <List title={translate('Sweeps')} items={entries(snapshot.sweeps)} shared={shared} row={SweepRow} />
      <List title={translate('Models')} items={entries(snapshot.models)} shared={shared} row={ModelRow} />
      <List title={translate('Idle sessions of yours')} items={idle} shared={shared} row={IdleRow} />
      <List title={translate('Waiting')} items={entries(snapshot.queue)} shared={shared} row={WaitingRow} />
    </div>
  );
}

interface Shared {
  pool: string;
  /** Who this owner is, in words. */
  label: (owner: string, label?: string) => string;
  /** Whether it takes orders of this person. */
  mine: (owner: string) => boolean;
  /** A device by its id, in words. */
  place: (device: string) => string;
  now: number;
}

interface RowProps<T> extends Shared {
  id: string;
  item: T;
}

interface ListProps<T> {
  title: string;
  items: [string, T][];
  shared: Shared;
  row: FunctionComponent<RowProps<T>>;
}

function List<T>({ title, items, shared, row: Row }: ListProps<T>): JSX.Element | null {
  return items.length ? (
    <div class="kn-part">
      <h4 class="kn-title">{title}</h4>
      <ul class="kn-list" aria-label={title}>
        {items.map(([id, item]) => (
          <Guard key={id}>
            <Row {...shared} id={id} item={item} />
          </Guard>
        ))}
      </ul>
    </div>
  ) : null;
}

function CellRow({ id, item: cell, pool, label, mine, now }: RowProps<Cell>): JSX.Element {
  const translate = useTranslate();
  const name = cell.number ? translate('Cell %1', cell.number) : translate('A cell');
  const ranks = cell.ranks === 1 ? translate('1 rank') : translate('%1 ranks', cell.ranks);
  return (
    <li class="kn-item">
      <div class="kn-line">
        <span class="kn-name">{name}</span>
        {mine(cell.owner) && (
          <OrderButton
            {...{ pool, owner: cell.owner, target: id, verb: 'stop_cell' as const }}
            text={translate('Stop')}
            meanwhile={translate('Stopping…')}
            label={translate('Stop %1', name)}
          />
        )}
      </div>
      {cell.text && (
        <code class="kn-code kn-first" title={cell.text}>
          {cell.text}
        </code>
      )}
      <div class="kn-facts">{[label(cell.owner), ranks, duration(now - cell.since)].join(' · ')}</div>
    </li>
  );
}

const ORDER = ['COMPLETE', 'RUNNING', 'WAITING', 'PRUNED', 'FAILED', 'STOPPED'];

function SweepRow({ id, item: sweep, pool, label, mine }: RowProps<Sweep>): JSX.Element {
  const translate = useTranslate();
  const { WAITING: _, RUNNING: running = 0, FAILED: failed = 0, ...others } = sweep.counts ?? {};
  const done = Object.values(others).reduce((sum, count) => sum + count, 0);
  const counts = ORDER.filter(state => sweep.counts?.[state]).map(state =>
    whole(`${sweep.counts[state]} ${translate(state.toLowerCase())}`)
  );
  const left = sweep.eta_seconds === undefined ? '' : translate('about %1 left', duration(sweep.eta_seconds));
  const runs = sweep.state === 'running';
  const { total = 0 } = sweep;
  const ended = `${done + failed}/${total}`;
  return (
    <li class="kn-item">
      <div class="kn-line">
        <span class="kn-name" title={sweep.fn}>
          {sweep.name}
        </span>
        {runs && mine(sweep.owner) ? (
          <OrderButton
            {...{ pool, owner: sweep.owner, target: id, verb: 'stop_sweep' as const }}
            text={translate('Stop')}
            meanwhile={translate('Stopping…')}
            label={translate('Stop the sweep %1; what is done is kept', sweep.name)}
          />
        ) : (
          <span class="kn-muted">{runs ? '' : translate(sweep.state)}</span>
        )}
      </div>
      <div class="kn-line kn-measure">
        <Progress
          label={translate('Progress of %1', sweep.name)}
          text={translate('%1 of %2 done', done + failed, total)}
          total={total}
          parts={[
            { kind: 'use', count: done },
            { kind: 'failed', count: failed },
            { kind: 'running', count: running }
          ]}
        />
        <span class="kn-number" style={{ minWidth: `${2 * String(total).length + 1}ch` }}>
          {ended}
        </span>
      </div>
      <div class="kn-facts">{[label(sweep.owner), whole(left)].filter(Boolean).join(' · ')}</div>
      <div class="kn-facts">{counts.join(' · ')}</div>
      {sweep.best && <div class="kn-best">{translate('best: %1', sweep.best)}</div>}
      {sweep.trouble && (
        <div class="kn-remark">
          <Warning>{sweep.trouble}</Warning>
        </div>
      )}
    </li>
  );
}

function ModelRow({ id, item: model, pool, label, mine, place }: RowProps<Model>): JSX.Element {
  const translate = useTranslate();
  const { stages = [], spares = [] } = model;
  const speed = model.tokens_per_second === undefined ? '' : translate('%1 tokens/s', model.tokens_per_second.toFixed(1));
  const { requests: asked = 0 } = model;
  const requests = asked === 1 ? translate('1 request') : asked ? translate('%1 requests', asked) : '';
  return (
    <li class="kn-item">
      <div class="kn-line">
        <span class="kn-name" title={model.name}>
          {model.name}
        </span>
        {mine(model.owner) && (
          <OrderButton
            {...{ pool, owner: model.owner, target: id, verb: 'close_model' as const }}
            text={translate('Close')}
            meanwhile={translate('Closing…')}
            label={translate('Close the model %1', model.name)}
          />
        )}
      </div>
      <div class="kn-facts">{[label(model.owner), translate(model.state)].join(' · ')}</div>
      <div class="kn-facts">{[whole(speed), whole(requests)].filter(Boolean).join(' · ')}</div>
      {stages.length > 1 && (
        <div class="kn-stages" aria-hidden="true">
          {stages.map(({ layers: [first, end] }, number) => (
            <span key={number} class="kn-stage" style={{ flexGrow: end - first }} />
          ))}
        </div>
      )}
      {stages.map(({ device, layers: [first, end] }) => (
        <div class="kn-facts" key={`${device}/${first}`}>
          {translate('layers %1 to %2 on %3', first, end - 1, place(device))}
        </div>
      ))}
      {spares.length > 0 && <div class="kn-facts">{translate('spare: %1', spares.map(place).join(', '))}</div>}
    </li>
  );
}

function IdleRow({ id, item: lease, pool, mine, place, now }: RowProps<Lease>): JSX.Element {
  const translate = useTranslate();
  const names = lease.devices.map(place).join(', ');
  return (
    <li class="kn-item">
      <div class="kn-line">
        <span class="kn-name" title={names}>
          {names}
        </span>
        {mine(lease.owner) && (
          <OrderButton
            {...{ pool, owner: lease.owner, target: id, verb: 'release' as const }}
            text={translate('Release')}
            meanwhile={translate('Releasing…')}
            label={translate('Release %1: the names in its session are lost', names)}
          />
        )}
      </div>
      <div class="kn-facts">{translate('idle for %1', duration(now - lease.since))}</div>
    </li>
  );
}

function WaitingRow({ item: waiting, label, now }: RowProps<Waiting>): JSX.Element {
  const translate = useTranslate();
  const wanted = waiting.count === 1 ? translate('wants 1 device') : translate('wants %1 devices', waiting.count);
  return (
    <li class="kn-item">
      <div class="kn-line">
        <span class="kn-name">{label(waiting.owner, waiting.label)}</span>
        <span class="kn-muted kn-number">{duration(now - waiting.since)}</span>
      </div>
      <div class="kn-facts">{wanted}</div>
      <div class="kn-reason">{waiting.reason}</div>
    </li>
  );
}

function placeOf(id: string, devices: Record<string, Device>): string {
  const device = devices[id];
  return device ? `${device.host} ${device.kind}:${device.index}` : id;
}
