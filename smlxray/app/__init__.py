"""Pages to compare X-rays, teach a finding, explore embeddings and read results.

Written by hand; the modules next to it are written from notebooks. It loads none of them, so that
`import smlxray.app` is quick and works without the packages that only pages need. In 0.1 this was
one module; its names are still found here, with a `DeprecationWarning`.
"""

from ..base import moved

_HOMES = {
    'app.session': 'MAX_UPLOAD Xray image_url file_name open_upload make_library Session',
    'app.teach': 'MAX_FINDING Stopped twin check_examples teach_live Answer resampled_scores '
                 'example_influence Store export_finding import_finding adapted_findings',
    'app.widgets': 'Tabs Field Upload Gallery Scatter Notice Link item_of Shelf guarded '
                   'in_background',
    'app.pages': 'PREVALENCES TEMPERATURES overlay tsne_map turn_onto ComparePage TeachPage '
                 'ExplorePage FindingsPage run_names answers_html ResultsPage App',
    'app.nursery': 'bundle_folder prepare open_session write_template notebook_file served_app',
    'app.serve': 'serve',
    'look': 'INK BLUE RED GREY PALETTE figure_url probability_svg curve_svg',
    'dicom': 'COLOURFUL colour_spread',
}
_MOVED = {name: f'smlxray.{home}' for home, names in _HOMES.items() for name in names.split()}
_MOVED |= {
    'look': 'smlxray.app.session:look_at',
    'ONE': 'smlxray.app.session:NETWORK',
    'answer': 'smlxray.app.teach:answer_queries',
    'adapted_embeddings': 'smlxray.app.teach:embeddings_at',
    'results_figure': 'smlxray.app.pages:results_chart',
    'steps_figure': 'smlxray.app.pages:steps_chart',
    'results_rows': 'smlxray.app.pages:results_html',
    'frame_html': 'smlxray.look:table_html',
    'pca_map': 'smlxray.look:principal_components',
}
_GONE = {
    'MAX_SHOTS': 'smlxray.app.session.MARKS holds the limits.',
    'STYLE': 'the style sheet is the file app/static/pages.css.',
    'nearest_cases': 'call `Session.nearest`.',
    'voila_command': '`serve` starts the server itself.',
    'DEMO': 'the pages begin with the run that is shipped; see smlxray.app.nursery.',
    'make_demo': 'the pages begin with the run that is shipped; see smlxray.app.nursery.',
    'listening': 'give `on_step` to smlxray.maml.adapt.',
}
__getattr__ = moved(__name__, _MOVED, _GONE)
