// What is seen of pools, in the sidebar and in the panel of a notebook alike: a state in, a picture out.
import { JSX, render } from 'preact';
import { useContext } from 'preact/hooks';
import { NOTHING, State } from '../state';
import { CopyCode } from './buttons';
import { PoolSection } from './pool';
import { Around, Guard } from './pure';
import { entries } from './records';
import { Link, Translate, View, ViewOptions } from './types';
import { percent, totals, untranslated } from './words';

export type { Actions, Answer, Link, Translate, Verb, View, ViewOptions } from './types';

export function mount(node: HTMLElement, options: ViewOptions): View {
  const translate = options.translate ?? untranslated;
  const around = { actions: options.actions, translate };
  const place = document.createElement('div');
  place.className = 'kn-view';
  place.setAttribute('role', 'region');
  place.setAttribute('aria-label', options.label ?? translate('GPU pools'));
  node.append(place);
  const view: View = {
    update(state, link, said) {
      // what is on the screen is of then, not of now
      place.classList.toggle('kn-down', link === 'down');
      render(
        <Around.Provider value={around}>
          <Pools state={state} link={link} said={said} part={options.part} />
        </Around.Provider>,
        place
      );
    },
    dispose() {
      render(null, place);
      place.remove();
    }
  };
  view.update(NOTHING, 'connecting');
  return view;
}

interface PoolsProps {
  state: State;
  link: Link;
  said: string | undefined;
  part: string | undefined;
}

function Pools({ state, link, said, part }: PoolsProps): JSX.Element {
  const { actions, translate } = useContext(Around);
  const pools = entries(state.pools);
  return (
    <>
      <div class="kn-head">
        <span class="kn-totals">{part === 'sweep' ? '' : summary(state, translate)}</span>
        <span class={`kn-link kn-link-${link}`} role="status">
          <span class="kn-word">{said ?? linkWord(link, translate)}</span>
        </span>
      </div>
      {pools.map(([id, pool]) => (
        <Guard key={id}>
          <PoolSection id={id} pool={pool} part={part} />
        </Guard>
      ))}
      {pools.length > 0 && actions.insertCell && (
        <div class="kn-actions kn-foot">
          <button type="button" class="kn-button" onClick={() => actions.insertCell?.(CELL)}>
            {translate('Insert %%pool cell')}
          </button>
        </div>
      )}
      {!pools.length && (link === 'live' || link === 'polling') && <Empty />}
    </>
  );
}

/** "2 pools · 6 devices · 71 %" */
function summary(state: State, translate: Translate): string {
  const { pools, devices, utilisation } = totals(state);
  if (!pools) {
    return '';
  }
  return [
    pools === 1 ? translate('1 pool') : translate('%1 pools', pools),
    devices === 1 ? translate('1 device') : translate('%1 devices', devices),
    percent(utilisation)
  ].join(' · ');
}

function linkWord(link: Link, translate: Translate): string {
  switch (link) {
    case 'live':
      return translate('live');
    case 'polling':
      return translate('live, by polling');
    case 'connecting':
      return translate('connecting…');
    default:
      return translate('server down');
  }
}

/** A cell that shows that all is well. */
export const CELL = '%%pool gpus=all\nprint(f"rank {rank} of {world_size} on {device}")';
const START = '%load_ext kalavai_nb';

function Empty(): JSX.Element {
  const { actions, translate } = useContext(Around);
  return (
    <div class="kn-empty">
      <h3>{translate('No pool yet')}</h3>
      <p>{translate('Run this in a notebook, in two cells, and it appears here:')}</p>
      <CopyCode code={START} />
      <CopyCode code={CELL} />
      <p class="kn-facts">
        {translate('It opens a pool of the GPUs of this machine, or of CPU stand-ins where it has none.')}
      </p>
      {actions.insertCell && (
        <button type="button" class="kn-button" onClick={() => actions.insertCell?.(CELL)}>
          {translate('Insert it into the notebook')}
        </button>
      )}
    </div>
  );
}
