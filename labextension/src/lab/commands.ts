// What the command palette and the View menu offer. None has a shortcut: core's own and other extensions' would collide.
import { JupyterFrontEnd } from '@jupyterlab/application';
import { ICommandPalette, InputDialog, Notification } from '@jupyterlab/apputils';
import { Translate } from '../view';
import { CELL } from '../view';
import { copyOrShow } from './copying';
import { poolIcon } from './icon';
import { Server } from './server';
import { Sidebar } from './sidebar';

export const OPEN = 'kalavai_nb:open';
const TOGGLE = 'kalavai_nb:toggle';
const COPY_INVITE = 'kalavai_nb:copy-invite';
const COPY_START = 'kalavai_nb:copy-start';
const INSERT_CELL = 'kalavai_nb:insert-cell';

// without a time it is not shown, only kept
const SHOWN = { autoClose: 8000 as const };
const START_CODE = 'import kalavai_nb as kn\n\npool = kn.Pool()\npool.panel()\n';

export interface Parts {
  sidebar: Sidebar;
  server: Server;
  translate: Translate;
  insert?: (source: string) => void;
}

/** The shells of JupyterLab and of Notebook 7 can fold their side areas; another may not. */
type FoldingShell = JupyterFrontEnd.IShell & Partial<Record<'collapseLeft' | 'collapseRight', () => void>>;

export function addCommands(app: JupyterFrontEnd, parts: Parts, palette: ICommandPalette | null): void {
  const { sidebar, server, translate, insert } = parts;
  const { commands } = app;
  const shell = app.shell as FoldingShell;
  const open = () => shell.activateById(sidebar.id);

  commands.addCommand(OPEN, { label: translate('Show GPU Pools'), icon: poolIcon, execute: open });
  commands.addCommand(TOGGLE, {
    label: translate('GPU Pools'),
    isToggleable: true,
    isToggled: () => sidebar.isVisible,
    execute: () => {
      if (!sidebar.isVisible) {
        open();
      } else if ([...shell.widgets('left')].includes(sidebar)) {
        shell.collapseLeft?.();
      } else {
        shell.collapseRight?.();
      }
    }
  });
  commands.addCommand(COPY_INVITE, {
    label: translate('Copy an Invite to a GPU Pool'),
    execute: () => copyInvite(server, translate)
  });
  commands.addCommand(COPY_START, {
    label: translate('Copy Code That Starts a GPU Pool'),
    execute: () => copyOrShow(START_CODE, translate('Copied. Run it in a notebook to start a pool.'), translate)
  });
  if (insert) {
    commands.addCommand(INSERT_CELL, { label: translate('Insert a %%pool Cell'), execute: () => insert(CELL) });
  }
  for (const command of [OPEN, TOGGLE, COPY_INVITE, COPY_START, INSERT_CELL]) {
    if (commands.hasCommand(command)) {
      palette?.addItem({ command, category: translate('GPU Pools') });
    }
  }
}

/** Of the one pool that can invite, or of the one that the person picks. */
async function copyInvite(server: Server, translate: Translate): Promise<void> {
  const state = await server.state().catch(() => null);
  if (!state) {
    Notification.error(translate('The Jupyter server does not tell of any pool: see the sidebar "GPU pools" for why.'), SHOWN);
    return;
  }
  const hosts = Object.entries(state.pools).flatMap(([pool, entry]) => {
    const host = Object.entries(entry.owners).find(([, owner]) => owner.can_invite && owner.link === 'live');
    return host ? [{ pool, owner: host[0], name: `${entry.snapshot.pool} [${pool}]` }] : [];
  });
  let chosen = hosts[0];
  if (hosts.length > 1) {
    const items = hosts.map(host => host.name);
    const picked = await InputDialog.getItem({ title: translate('Invite to which pool?'), items });
    chosen = hosts[items.indexOf(picked.value ?? '')];
    if (!picked.button.accept || !chosen) {
      return;
    }
  }
  if (!chosen) {
    Notification.warning(translate('No pool of yours can invite now. Start one with kn.Pool() in a notebook.'), SHOWN);
    return;
  }
  const { ok, text } = await server.order(chosen.pool, chosen.owner, 'invite', chosen.pool);
  if (!ok) {
    Notification.error(text, SHOWN);
    return;
  }
  const said = translate('The invite is copied. Whoever has it can run code on every machine of the pool.');
  await copyOrShow(text, said, translate);
}
