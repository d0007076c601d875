"""Every data set that `load` knows.

To add one, write a reader (bytes of its files -> arrays) in `readers` and a record here.
"""

import difflib

from neuropil.data.readers import read_breast_cancer, read_digits, read_idx_images, read_iris
from neuropil.data.records import Record, RemoteFile

__all__ = ["RECORDS", "find_record"]

# Names of the four files of MNIST and its relatives, and the lengths of their content.
IDX_FILES = {
    "train-images-idx3-ubyte.gz": 47_040_016,
    "train-labels-idx1-ubyte.gz": 60_008,
    "t10k-images-idx3-ubyte.gz": 7_840_016,
    "t10k-labels-idx1-ubyte.gz": 10_008,
}


def _idx_files(addresses: tuple[str, ...], *published: tuple[int, str]) -> tuple[RemoteFile, ...]:
    """Files in the order of IDX_FILES; `published` has each one's compressed length and the SHA-256 of its content."""
    return tuple(
        RemoteFile(name, sha256, content_bytes, download_bytes, tuple(address + name for address in addresses))
        for (name, content_bytes), (download_bytes, sha256) in zip(IDX_FILES.items(), published, strict=True)
    )


DIGITS = Record(
    name="digits",
    title="Optical recognition of handwritten digits",
    description="8x8 images of digits with 17 grey levels; a random stratified split of 1,437 and 360, by seed.",
    licence="CC BY 4.0",
    citation="Alpaydin & Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository (1998).",
    samples=1797,
    class_names=tuple("0123456789"),
    read=read_digits,
    embedded_in="scikit-learn",
)

IRIS = Record(
    name="iris",
    title="Iris",
    description="Four lengths (cm) of 150 flowers, three species; a random stratified split of 105 and 45, by seed.",
    licence="CC BY 4.0",
    citation="Fisher, The use of multiple measurements in taxonomic problems, Annals of Eugenics 7 (1936).",
    samples=150,
    class_names=("setosa", "versicolor", "virginica"),
    read=read_iris,
    embedded_in="scikit-learn",
)

BREAST_CANCER = Record(
    name="breast-cancer",
    title="Breast cancer Wisconsin (diagnostic)",
    description="Thirty measures of cell nuclei, unscaled; a random stratified split of 398 and 171, by seed.",
    licence="CC BY 4.0",
    citation="Street, Wolberg & Mangasarian, Nuclear feature extraction for breast tumor diagnosis, Proc. SPIE 1905 "
    "(1993).",
    samples=569,
    class_names=("malignant", "benign"),
    read=read_breast_cancer,
    embedded_in="scikit-learn",
)

MNIST_ADDRESSES = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
FASHION_ADDRESSES = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
)

MNIST = Record(
    name="mnist",
    title="MNIST",
    description="28x28 grey images of handwritten digits; the official split of 60,000 and 10,000.",
    licence="CC BY-SA 3.0",
    citation="LeCun, Bottou, Bengio & Haffner, Gradient-based learning applied to document recognition, Proc. IEEE 86 "
    "(1998).",
    samples=70_000,
    class_names=tuple("0123456789"),
    read=read_idx_images,
    files=_idx_files(
        MNIST_ADDRESSES,
        (9_912_422, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
        (28_881, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
        (1_648_877, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
        (4_542, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
    ),
)

FASHION_MNIST = Record(
    name="fashion-mnist",
    title="Fashion-MNIST",
    description="28x28 grey images of clothes from Zalando; the official split of 60,000 and 10,000.",
    licence="MIT",
    citation="Xiao, Rasul & Vollgraf, Fashion-MNIST: a novel image dataset for benchmarking machine learning "
    "algorithms, arXiv:1708.07747 (2017).",
    samples=70_000,
    class_names=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    read=read_idx_images,
    files=_idx_files(
        FASHION_ADDRESSES,
        (26_421_880, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
        (29_515, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
        (4_422_102, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
        (5_148, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
    ),
)

RECORDS: dict[str, Record] = {record.name: record for record in (DIGITS, IRIS, BREAST_CANCER, MNIST, FASHION_MNIST)}


def find_record(name: str) -> Record:
    """Look a data set up.

    Raises:
        TypeError: if the name is no string.
        ValueError: if there is no such set; the message has the nearest name and all names.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {type(name).__name__}.")
    if name in RECORDS:
        return RECORDS[name]
    near = difflib.get_close_matches(name.lower(), RECORDS, n=1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"No data set is named {name!r}.{guess} There are: {', '.join(sorted(RECORDS))}.")
