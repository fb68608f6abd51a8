"""The catalogue: everything about an item that does not need the query, computed once and memory-mapped.

`Catalog` reads one, `build_catalog` makes one, `CatalogWriter` changes one while others read it. Layout: docs/formats.md, "Catalogue".
"""

from .catalog_build import build_catalog
from .catalog_info import CatalogInfo
from .catalog_snapshot import Catalog, Origin
from .catalog_writer import CatalogWriter

__all__ = ["Catalog", "CatalogInfo", "CatalogWriter", "Origin", "build_catalog"]
