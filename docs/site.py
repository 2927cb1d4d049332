"""What mkdocs is told of the site (mkdocs.yml): which files it has, and that no page of them is forgotten.

The site has the checkout's own layout, so a relative link is right in both: README.md is its first page, a page of
docs links to `../VALIDATION.md`. FILES are all that it has: a link to any other file is refused (`mkdocs build
--strict`), so code is named and not linked.
"""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation

ROOT = Path(__file__).resolve().parents[1]
FILES = (
    "*.md",
    "CITATION.cff",
    "docs/*.md",
    "docs/*.csv",
    "docs/*.svg",
    "docs/assets/*",
    "analysis/results/*",
    "traces/samples/README.md",
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Those of FILES in place of the folder's, beside what the theme brings."""
    theirs = [file for file in files if file.src_dir != config.docs_dir]
    names = sorted(str(path.relative_to(ROOT)) for form in FILES for path in ROOT.glob(form))
    return Files([*theirs, *(File(name, str(ROOT), config.site_dir, config.use_directory_urls) for name in names)])


def on_nav(nav: Navigation, config: MkDocsConfig, files: Files) -> Navigation:
    """Raises PluginError that names the pages which nobody would find."""
    listed = {page.file.src_uri for page in nav.pages}
    forgotten = [file.src_uri for file in files.documentation_pages() if file.src_uri not in listed]
    if forgotten:
        raise PluginError(f"not in the nav of mkdocs.yml: {', '.join(forgotten)}")
    return nav
