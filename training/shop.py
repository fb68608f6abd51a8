"""The words of the generated shop: kinds of thing, their names, their attributes, their brands.

Real English, so that a pretrained model knows that a couch is a sofa; invented brands, so that nobody's mark is used.
The first name of a kind or a value is its truth; the others are what people also call it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

# Names ; relatives (a buyer could take one for the other) ; dimensions ; prices ; what it is an accessory of, if anything.
# A name after ~ is said by buyers only, never by titles.
_KINDS = """
[furniture]
sofa, couch, settee ; seating ; color upholstery room ; 300-2400
armchair, lounge chair, easy chair ; seating ; color upholstery ; 150-1100
office chair, desk chair, swivel chair, ~computer chair ; chairs ; color upholstery fit ; 80-700
dining chair, kitchen chair ; chairs ; color wood ; 40-320
bar stool, counter stool ; chairs ; color metal wood ; 40-260
coffee table, cocktail table ; tables ; wood metal room ; 70-650
nightstand, bedside table, ~night table ; tables ; wood color ; 45-380
desk, writing table, computer table, ~workstation ; tables ; wood color fold ; 90-900
bookcase, bookshelf, ~book rack ; storage ; wood color room ; 60-520
dresser, chest of drawers ; storage ; wood color ; 150-1200
wardrobe, armoire, ~clothes cabinet ; storage ; wood color ; 200-1500
mattress, ~bed pad ; beds ; bed ; 150-1800
bed frame, bedstead ; beds ; bed wood metal ; 120-1400
sofa cover, couch slipcover, settee protector ; covers ; color textile ; 20-120 ; sofa
mattress topper, mattress pad ; covers ; bed ; 30-240 ; mattress
desk lamp, reading lamp, table light ; lamps ; color metal charge ; 15-160
floor lamp, standing lamp ; lamps ; color metal ; 30-320
rug, carpet, floor mat ; floors ; color textile room ; 25-900
curtains, drapes, ~window coverings ; windows ; color textile ; 15-180
rug pad, carpet underlay ; floors ; room ; 12-90 ; rug
curtain rod, drapery pole ; windows ; metal color ; 12-90 ; curtains
[kitchen]
refrigerator, fridge, ~icebox ; appliances ; color room ; 400-3000
dishwasher, ~dish washing machine ; appliances ; color room ; 350-1600
microwave, microwave oven ; appliances ; color room ; 60-450
coffee maker, coffee machine, ~coffee brewer ; coffee ; color program ; 25-350
espresso machine, ~cappuccino maker ; coffee ; color metal ; 90-1200
coffee filter, coffee maker paper filter ; coffee parts ; count ; 4-22 ; coffee maker
kettle, water boiler, ~tea maker ; hot water ; color metal ; 18-150
blender, smoothie maker, ~liquidizer ; mixing ; color program ; 25-500
stand mixer, cake mixer, dough mixer ; mixing ; color program ; 90-700
blender jar, replacement pitcher for blender ; mixing parts ; count ; 10-60 ; blender
skillet, frying pan, fry pan ; cookware ; pan inch ; 15-180
saucepan, sauce pot ; cookware ; pan ; 15-160
skillet lid, frying pan cover ; cookware parts ; inch ; 8-40 ; skillet
chef knife, cooking knife ; cutlery ; metal ; 15-220
knife sharpener, blade sharpener for kitchen knife ; cutlery parts ; color charge ; 10-90 ; chef knife
cutting board, chopping board ; boards ; wood room ; 10-90
trash can, garbage bin, waste basket, ~rubbish bin ; bins ; color metal room ; 12-180
trash bags, garbage can liners ; bins parts ; count ; 6-40 ; trash can
water bottle, drinking flask, ~canteen ; bottles ; color metal ; 8-55
lunch box, bento box, ~food container ; bottles ; color audience ; 8-45
[electronics]
television, tv, ~flat screen ; screens ; screen resolution ; 150-2600
monitor, computer screen, pc display ; screens ; screen resolution ; 90-1200
tv wall mount, television bracket ; mounts ; screen ; 18-150 ; television
tv stand, television cabinet, media console ; mounts ; wood color ; 60-500 ; television
laptop, notebook computer, ~portable computer ; computers ; storage color ; 250-2600
tablet, tablet computer ; computers ; storage color ; 90-1100
laptop sleeve, notebook computer case ; cases ; color textile ; 12-70 ; laptop
laptop charger, notebook computer power adapter ; chargers ; count ; 15-90 ; laptop
cell phone, smartphone, mobile phone, ~cellular ; phones ; storage color ; 100-1300
phone case, smartphone cover, cell phone shell ; cases ; color upholstery ; 6-60 ; cell phone
phone charger, charging cable for smartphone ; chargers ; count color ; 6-50 ; cell phone
headphones, over ear headset ; audio ; color wireless ; 25-450
earbuds, earphones, in ear buds ; audio ; color wireless ; 15-280
speaker, loudspeaker, ~sound box ; audio ; color wireless water ; 25-600
headphone stand, headset holder ; mounts ; wood metal ; 12-60 ; headphones
camera, digital camera, ~photo camera ; cameras ; color resolution ; 120-2400
camera bag, digital camera case ; cases ; color textile water ; 15-140 ; camera
flash drive, usb stick, thumb drive, ~memory stick ; memory ; storage color ; 6-90
printer, inkjet printer ; printing ; color wireless ; 60-500
printer ink, ink cartridge for printer ; printing parts ; count color ; 12-90 ; printer
[clothing]
sneakers, trainers, running shoes, ~gym shoes ; shoes ; color audience ; 30-220
boots, ankle boots ; shoes ; color audience upholstery water ; 45-320
sandals, flip flops ; shoes ; color audience ; 12-120
shoe laces, laces for sneakers ; shoes parts ; color count ; 3-15 ; sneakers
sweater, pullover, jumper ; tops ; color audience textile ; 20-220
hoodie, hooded sweatshirt ; tops ; color audience textile ; 20-120
t shirt, tee, ~tshirt ; tops ; color audience textile ; 8-60
jacket, coat ; outer ; color audience water ; 40-450
pants, trousers, slacks ; bottoms ; color audience textile ; 20-160
sweatpants, joggers, ~track pants ; bottoms ; color audience textile ; 18-95
pajamas, sleepwear, ~nightwear ; sleep ; color audience textile ; 15-110
handbag, purse, shoulder bag ; bags ; color upholstery ; 25-600
backpack, rucksack, ~school bag ; bags ; color textile water ; 20-240
suitcase, travel luggage, ~trolley case ; bags ; color room ; 50-500
luggage tag, suitcase name label ; bags parts ; color upholstery ; 4-25 ; suitcase
watch, wristwatch, ~timepiece ; jewelry ; color audience metal water ; 25-900
watch band, wristwatch strap ; jewelry parts ; color upholstery ; 8-80 ; watch
sunglasses, ~shades, ~sun glasses ; eyewear ; color audience ; 12-250
[garden and tools]
lawn mower, grass cutter, ~grass trimmer ; mowing ; cord fold ; 120-1500
lawn mower blade, replacement blade for grass cutter ; mowing parts ; inch ; 10-60 ; lawn mower
drill, power driver, ~screw gun ; power tools ; cord ; 35-400
drill bits, bit set for drill ; power tools parts ; count metal ; 8-90 ; drill
circular saw, power saw ; power tools ; cord ; 50-420
wrench, spanner ; hand tools ; metal fit ; 8-90
flashlight, torch light, ~hand lamp ; lights ; charge water ; 8-120
grill, barbecue, bbq ; outdoor cooking ; color metal fold ; 60-1400
grill cover, barbecue protector ; outdoor cooking parts ; color water ; 14-90 ; grill
garden hose, water hose ; watering ; color foot ; 15-110
hose nozzle, spray head for garden hose ; watering parts ; metal color ; 6-40 ; garden hose
patio umbrella, parasol, ~sun shade ; patio ; color foot ; 40-500
faucet, tap, ~spigot ; plumbing ; metal ; 30-420
vacuum cleaner, hoover, vac ; cleaning ; cord color ; 60-800
vacuum cleaner bags, hoover dust bags ; cleaning parts ; count ; 8-40 ; vacuum cleaner
[sports and kids]
bicycle, bike, ~push bike ; riding ; color audience fold ; 120-2400
bicycle lock, bike chain lock ; riding parts ; color ; 10-120 ; bicycle
bicycle helmet, bike helmet, ~cycling helmet ; riding parts ; color audience ; 20-220
tent, camping shelter ; camping ; color people water ; 60-700
sleeping bag, camp bed sack ; camping ; color audience ; 25-320
tent stakes, pegs for camping tent ; camping parts ; metal count ; 6-40 ; tent
yoga mat, exercise mat, ~fitness mat ; fitness ; color fold ; 14-120
dumbbells, hand weights, ~free weights ; fitness ; color fit ; 20-350
stroller, pushchair, baby carriage, ~pram ; baby ; color fold ; 70-1100
crib, baby cot, ~infant bed ; baby ; wood color ; 110-900
stroller rain cover, pushchair shield ; baby parts ; water ; 12-60 ; stroller
stuffed animal, plush toy, soft toy, ~cuddly toy ; toys ; color room ; 8-70
jigsaw puzzle, picture puzzle ; toys ; pieces ; 8-50
dog bed, pet bed, ~puppy bed ; pets ; color textile room ; 20-180
leash, dog lead ; pets ; color upholstery ; 8-50
"""

# Dimension: the attribute it fills, then its values; the names of one value are joined by "/".
_DIMENSIONS = """
color: color: black/jet black, white/snow white, gray/grey/charcoal, navy/dark blue, red/crimson/scarlet, beige/tan/cream, \
brown/chocolate, green/olive, pink/rose, yellow/mustard, silver/chrome, purple/violet
upholstery: material: leather/genuine leather/cowhide, faux leather/vegan leather/pu leather, velvet/velour, \
linen/flax, microfiber/microfibre
wood: material: oak/oak wood, walnut/walnut wood, pine/pine wood, bamboo, mahogany
metal: finish: stainless steel/inox, copper, brass/golden, matte black/black matte, aluminum/aluminium
pan: material: cast iron/iron, nonstick/non stick/teflon, stainless steel/inox, ceramic/ceramic coated
textile: material: cotton, wool/woolen, silk/satin, polyester/poly, fleece/polar fleece
room: size: small/compact/mini, medium/mid size, large/big/xl, extra large/oversized/jumbo
fit: size: heavy duty/reinforced, adjustable/variable, lightweight/light weight
bed: bed size: twin/single, full/double, queen, king
inch: size in inches: 8 inch/8in, 10 inch/10in, 12 inch/12in, 14 inch/14in
screen: size in inches: 24 inch/24in, 32 inch/32in, 43 inch/43in, 55 inch/55in, 65 inch/65in
foot: length: 6 ft/6 foot, 10 ft/10 foot, 25 ft/25 foot, 50 ft/50 foot
storage: capacity: 32 gb/32gb, 64 gb/64gb, 128 gb/128gb, 256 gb/256gb, 512 gb/512gb
resolution: resolution: full hd/1080p, 4k/ultra hd/uhd, 8k
count: pack: 2 pack/set of 2/two pack, 4 pack/set of 4/four pack, 10 pack/set of 10, 50 pack/set of 50
pieces: pieces: 100 piece/100 pc, 500 piece/500 pc, 1000 piece/1000 pc
people: capacity: 2 person/two person, 4 person/four person, 6 person/family size
audience: audience: men/male/gents, women/ladies/female, kids/children/child
cord: power: cordless/battery powered, corded/electric, gas/petrol
charge: power: rechargeable/usb charging, battery operated/aa battery, plug in/corded
wireless: connection: wireless/bluetooth/cordless, wired/corded
water: feature: waterproof/water resistant/rainproof, quick dry/fast drying
fold: feature: foldable/folding/collapsible, fixed/rigid
program: feature: programmable/with timer, manual/hand operated
"""

_BRANDS = """
furniture: Oakhaven Lumora Nordvik Castwell Brindle Halden Verano Tessaly Fernwick Modoro
kitchen: Brewmont Kitchora Panelli Culinex Steepwell Hearthco Miravo Tastique Fresco Domani
electronics: Voltix Zentari Pixelon Auralis Quantoro Nexora Bitwise Luminor Sonara Teklon
clothing: Stridewell Marlowe Fjellen Urbana Velora Kestrel Ashby Tundra Solenne Pacific
garden and tools: Ironclad Greenleaf Torqo Boltman Yardley Rivetto Stonegate Mulchco Duramax Handler
sports and kids: Peakline Wanderly Tumbleo Sprinto Cubby Trailhead Flexar Pawsome Joyland Summit
"""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of thing the shop sells.

    Attributes
    ----------
    names : what it is called in titles and queries; the first is its truth.
    asked : what buyers call it, titles never do.
    category : the department; ``category`` of its items.
    family : kinds of one family can stand in for each other.
    dimensions : the keys of ``DIMENSIONS`` its items have a value of.
    prices : (lowest, highest), in the shop's currency.
    accessory_of : the first name of the kind it goes with, or ``""``.
    """

    names: tuple[str, ...]
    asked: tuple[str, ...]
    category: str
    family: str
    dimensions: tuple[str, ...]
    prices: tuple[int, int]
    accessory_of: str


@dataclass(frozen=True, slots=True)
class Dimension:
    """One attribute and its values; ``values[i]`` are the names of a value, the true one first."""

    attribute: str
    values: tuple[tuple[str, ...], ...]


@lru_cache(maxsize=1)
def kinds() -> tuple[Kind, ...]:
    """Every kind of thing, in the order of the table."""
    found, category = [], ""
    for line in _KINDS.strip().splitlines():
        if line.startswith("["):
            category = line.strip("[]")
            continue
        names, family, dimensions, prices, accessory_of = [*(part.strip() for part in line.split(";")), ""][:5]
        spoken = [name.strip() for name in names.split(",")]
        low, high = prices.split("-")
        found.append(
            Kind(
                names=tuple(name for name in spoken if not name.startswith("~")),
                asked=tuple(name[1:] for name in spoken if name.startswith("~")),
                category=category,
                family=family,
                dimensions=tuple(dimensions.split()),
                prices=(int(low), int(high)),
                accessory_of=accessory_of,
            )
        )
    return tuple(found)


@lru_cache(maxsize=1)
def dimensions() -> Mapping[str, Dimension]:
    """Every dimension by its key."""
    found = {}
    for line in _DIMENSIONS.strip().splitlines():
        key, attribute, values = (part.strip() for part in line.split(":"))
        found[key] = Dimension(attribute, tuple(tuple(value.strip().split("/")) for value in values.split(",")))
    return found


@lru_cache(maxsize=1)
def brands() -> Mapping[str, tuple[str, ...]]:
    """The brands of each category, the cheapest first."""
    return {category: tuple(names.split()) for category, names in (line.split(":") for line in _BRANDS.strip().splitlines())}
