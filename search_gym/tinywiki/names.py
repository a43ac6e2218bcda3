"""Invented names, and which of them each split may use.

Every entity has a name of two words, one from each of its type's two pools, so a word tells the type. One half of each
pool belongs to training and the other to test:

| split | name words | names |
|---|---|---|
| train | training half x training half | the grid less a band of diagonals |
| validation | training half x training half | that band: new names made of known words |
| test | test half x test half | new names made of new words |
| pretrain | training half x test half, test half x training half | all words, none of the other splits' names |
"""

from __future__ import annotations

from functools import cache

from search_gym.errors import OptionError

SPLITS = ("train", "validation", "test", "pretrain")
YEARS = tuple(str(year) for year in range(1900, 1990, 3))

# For each type: first words for training, for test, second words for training, for test.
_POOLS = {
    "person": (
        "Vuxa Vobo Thumi Juden Truxis Jadu Nenva Drago Sosi Glusen Kulis Stunu Dalma Lulo Blozi Vumen",
        "Bresis Nolu Vrada Triko Mixi Luven Bazis Blaku Gika Fazo Bemi Doken Plokis Fusu Kiza Fizo",
        "Boxen Gemek Plard Doxin Zesolt Drovar Blewik Tronek Somek Bixard Grilin Kekolt Gralov Hudwik Maxsen Krivek",
        "Sanard Fegin Trelt Kroro Grogwik Horsen Lumek Glerar Vrodin Krakolt Danov Duvwik Lovsen Tudek Nurard Glarin",
    ),
    "city": (
        "Lobum Fimath Kanor Modesh Lalal Jizum Brurath Firor Visesh Hulal Bozum Plilath",
        "Busor Fonesh Glizal Hanum Vuzath Pinor Thoxesh Bogal Sogum Bunath Fuxor Bravesh",
        "Betmar Goxstad Bivpolis Humgrad Podhaven Likburg Vrimmar Skemstad Segpolis Pergrad Hozhaven Statburg",
        "Golmar Mekstad Sudpolis Palgrad Mulhaven Risburg Skulmar Velstad Blimpolis Dalgrad Guvhaven Vremburg",
    ),
    "country": (
        "Stovan Jaxol Zutir Demem Miban Plubol Krekir Thenem Toran Vomol Trakir Drusem",
        "Bridan Pevol Lonir Nuxem Pitan Thazol Vibir Tidem Bexan Skarol Drisir Hutem",
        "Brodia Nogland Kirstan Tunonia Sabovia Dukia Zatland Jabstan Voxonia Simovia Zoria Kogland",
        "Birstan Kemonia Bizovia Zunia Metland Sobstan Kusonia Kumovia Gremia Puzland Kexstan Karonia",
    ),
    "company": (
        "Letex Fiktron Gokix Rinon Baxyx Kenex Kertron Nagix Deson Vaxyx Romex Jodtron",
        "Rikix Kuron Guxyx Binex Skogtron Gekix Hibon Tekyx Skivex Zaltron Rulix Lison",
        "Nimcorp Jundyne Gogtek Gevlux Mivworx Puvgen Vabcorp Jovdyne Krultek Toklux Nukworx Nilgen",
        "Begcorp Dekdyne Poltek Glovlux Stegworx Gelgen Rurcorp Gizdyne Hodtek Blurlux Nemworx Zabgen",
    ),
    "film": (
        "Nugous Thivine Muzeth Memique Luvous Kasine Daveth Molique Jumous",
        "Zimine Pideth Tikique Huzous Gozine Funeth Tugique Zovous Nesine",
        "Notola Hezade Gitura Vugesque Pekola Bisade Sukura Suvesque Jenola",
        "Juvade Bonura Gruvesque Pavola Pledade Rixura Pezesque Zuxola Vusade",
    ),
}
TYPES = tuple(_POOLS)


def words() -> tuple[str, ...]:
    """Every name word, each once."""
    return tuple(word for pools in _POOLS.values() for pool in pools for word in pool.split())


@cache
def names(split: str, entity_type: str) -> tuple[str, ...]:
    """Every name that entities of ``entity_type`` may have in ``split``, in a fixed order.

    Raises:
        OptionError: unknown split.
    """
    if split not in SPLITS:
        raise OptionError(f"expected a split among {SPLITS}, got {split!r}; do: pick one of them")
    first_train, first_test, second_train, second_test = (pool.split() for pool in _POOLS[entity_type])
    if split == "test":
        return tuple(f"{first} {second}" for first in first_test for second in second_test)
    if split == "pretrain":
        crossed = ((first_train, second_test), (first_test, second_train))
        return tuple(f"{first} {second}" for firsts, seconds in crossed for first in firsts for second in seconds)
    size = len(first_train)
    return tuple(
        f"{first} {second}"
        for i, first in enumerate(first_train)
        for j, second in enumerate(second_train)
        if ((i - j) % size < size // 4) == (split == "validation")
    )
