import { LabIcon } from '@jupyterlab/ui-components';

/** Two GPUs on one board; `jp-icon3` takes the colour of the theme. */
export const poolIcon = new LabIcon({
  name: 'kalavai_nb:pool',
  svgstr: `<svg xmlns="http://www.w3.org/2000/svg" width="16" viewBox="0 0 24 24">
  <path class="jp-icon3" fill="#616161" d="M3 5h18a1 1 0 0 1 1 1v10a1 1 0 0 1-1 1H3a1 1 0 0 1-1-1V6a1 1 0 0 1 1-1zm1 2v8h16V7H4zm2 2h4v4H6V9zm8 0h4v4h-4V9zM5 18h2v2H5v-2zm4 0h2v2H9v-2zm4 0h2v2h-2v-2zm4 0h2v2h-2v-2z"/>
</svg>`
});
