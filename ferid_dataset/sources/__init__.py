"""One module a source dataset: each reads its own layout on disk into the columns of `base.SAMPLES`."""

from ferid_dataset.sources import affectnet, crema_d, dfew, ferplus, ferv39k, folder, mafw, raf_db
from ferid_dataset.sources.base import Source

SOURCES: dict[str, Source] = {
    module.SOURCE.name: module.SOURCE
    for module in (ferplus, raf_db, affectnet, dfew, ferv39k, mafw, crema_d, folder)  # the paper's order, then ours
}
