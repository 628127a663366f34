"""What the sample shop sells and what its customers build: tables written for this package.

GOODS: departments ('# '), then per kind of product two lines:
  key = nouns | group/leaf category | attribute axes | price range
      features, as phrases that follow 'with'
PROJECTS: a name that no item's text mentions, and the kinds bought for it, in order; two kinds
that follow each other stand in different departments.
"""


AXES = {
    'bore': ('4 mm', '6 mm', '8 mm', '10 mm', '12 mm'),
    'color': ('black', 'white', 'blue', 'red', 'clear'),
    'grade': ('student', 'workshop', 'laboratory', 'reference'),
    'metal': ('stainless steel', 'brass', 'aluminium', 'zinc steel'),
    'plastic': ('nylon', 'polypropylene', 'PTFE', 'ABS'),
    'size': ('mini', 'compact', 'standard', 'large', 'jumbo'),
    'thread': ('M3', 'M4', 'M5', 'M6'),
    'voltage': ('5 V', '12 V', '24 V', '48 V'),
    'volume': ('50 ml', '100 ml', '250 ml', '500 ml', '1 litre'),
}

# Four circles of ten; a customer is at home in one circle.
BRANDS = (
    ('Orlevane', 'Brackmoor', 'Tessifen', 'Quillmere', 'Haldrith',
     'Vantorry', 'Pellowick', 'Norriskell', 'Sundrell', 'Kestivar'),
    ('Dunmarrow', 'Ashqual', 'Fennowick', 'Marrovic', 'Ostrelle',
     'Grintham', 'Lumerack', 'Thornyke', 'Wexhollow', 'Calderisk'),
    ('Ivenwright', 'Zephrane', 'Bollinth', 'Crestoval', 'Hobbermere',
     'Juntarel', 'Kolvane', 'Lindraste', 'Mosgarrow', 'Nethercoil'),
    ('Opplewood', 'Pyrenth', 'Rookendale', 'Selkworth', 'Tarnivick',
     'Umberlane', 'Vexholm', 'Windrassel', 'Yarrowmint', 'Zinnoble'),
)

PRODUCTS = """
# Laboratory Glassware
beaker = low-form beaker, tall beaker | Vessels/Beakers | volume grade | 3-18
    a spout that pours cleanly; white enamel graduations; an even wall that takes the heat
flask = conical flask, narrow-neck flask | Vessels/Flasks | volume grade | 4-22
    sloping sides made for swirling; a reinforced rim; a frosted patch for notes
cylinder = measuring cylinder, graduated cylinder | Volumetric/Cylinders | volume plastic | 5-24
    a hexagonal foot that will not roll; fine blue divisions; a bumper ring below the lip
burette = burette, titration tube | Volumetric/Burettes | volume grade | 19-75
    a stopcock that turns without grease; a stripe behind the scale; a drawn-out jet
vial = sample vial, screw-cap vial | Sampling/Vials | volume pack | 6-28
    a lined cap that seals at once; a flat shoulder; walls of low-extraction glass
watchglass = watch glass, evaporating dish | Vessels/Dishes | size pack | 2-14
    fire-polished edges; a shallow even curve; a ground rim that stacks
condenser = coil condenser, jacketed condenser | Assemblies/Condensers | bore grade | 28-110
    two glass olives; a tight inner spiral; ground joints at both ends
testtube = test tube, culture tube | Vessels/Tubes | bore pack | 4-20
    a round bottom; a rolled lip; walls thick enough for a spirit flame

# Chemicals & Reagents
buffer = calibration buffer, reference solution | Solutions/Buffers | volume grade | 7-26
    a colour for every value; a printed temperature table; a batch certificate
citric = citric acid, fruit acid crystals | Acids | grade pack | 5-21
    a coarse free-flowing grain; a resealable pouch; a slow even taste
copper = copper sulphate, bluestone crystals | Salts | grade pack | 6-27
    a deep blue shade; large clean grains; a child-proof lid
agar = agar powder, gelling powder | Culture Media | grade pack | 9-38
    a high gel strength; a clear set; a neutral smell
isopropanol = isopropyl alcohol, rinsing alcohol | Solvents | volume grade | 6-30
    a certified low water content; a fine nozzle; a residue-free finish
glycerol = glycerol, vegetable glycerine | Solvents | volume grade | 5-23
    a syrup-like body; a wide neck for spooning; a taste-free finish
charcoal = activated charcoal, granular carbon | Adsorbents | size pack | 8-33
    a washed dust-free grain; a huge inner surface; a tough coconut-shell base
nutrients = nutrient salts, mineral feed | Salts | volume grade | 8-36
    a full set of trace elements; a balanced nitrogen share; a quick clear dissolve
stain = methylene blue, contrast dye | Dyes & Stains | volume grade | 6-25
    a dropper in the lid; a deep even tint; a long shelf life

# Measuring Instruments
phpen = acidity pen, pocket pH meter | Liquids/Acidity | grade size | 24-95
    a replaceable electrode; two-point adjustment; a display that can be read upside down
conductivity = conductivity meter, salinity tester | Liquids/Conductivity | grade color | 22-120
    automatic ranging; graphite electrodes; a hold button
refractometer = refractometer, sugar gauge | Liquids/Refractive | grade size | 26-90
    a rubber eyepiece; a scale adjusted by one screw; a padded case
infrared = infrared thermometer, spot pyrometer | Temperature | grade color | 18-88
    two aiming dots; an emissivity setting; an alarm for both limits
caliper = digital caliper, vernier gauge | Length | metal size | 15-98
    a thumb wheel; jaws for inside and depth; an origin key
multimeter = multimeter, digital voltmeter | Electrical | grade color | 19-140
    gold-flashed leads; a continuity beep; fused current sockets
luxmeter = lux meter, illuminance gauge | Light | grade color | 21-105
    a cosine-corrected dome; a coiled sensor lead; peak capture
scale = pocket balance, precision balance | Mass | size grade | 14-130
    a draught cover; a counting mode; a tare key on each side

# Microscopy & Optics
slide = microscope slide, glass specimen plate | Preparation/Slides | pack grade | 5-22
    ground edges; a frosted writing end; a box with numbered slots
coverslip = cover slip, thin glass square | Preparation/Covers | pack size | 4-17
    an even thickness; a drawer that hands them out singly; a lint-free wrap
loupe = hand lens, folding loupe | Magnifiers | metal size | 7-48
    three cemented elements; a lanyard hole; a case that swings over the lens
micrometer = stage micrometer, ruled graticule | Calibration | grade metal | 23-85
    lines etched in chrome; a wooden box; crossed scales
objective = achromat objective, long-focus lens | Components/Objectives | grade size | 32-160
    a spring-loaded nose; flat-field glass; a parfocal barrel
prism = dispersion prism, right-angle prism | Components/Prisms | size grade | 9-60
    bevelled corners; faces flat to a fraction of a wave; a felt-lined tin
tissue = lens tissue, optical paper | Care | pack size | 3-12
    long soft fibres; a silicone-free weave; a tear-off booklet
ringlight = ring lamp, shadowless illuminator | Illumination | voltage color | 17-79
    four switched quarters; a dimmer on the cord; a three-screw collar

# Electronic Components
resistor = resistor assortment, metal film resistors | Passives/Resistors | pack grade | 4-21
    paper strips by value; tight tolerance; tinned copper leads
capacitor = electrolytic capacitor, radial capacitor | Passives/Capacitors | voltage pack | 3-19
    a low series resistance; a vented top; a rating for hot places
toggle = toggle switch, rocker switch | Electromechanical/Switches | voltage color | 3-15
    silver contacts; a positive snap; a splash boot
bananasocket = binding post, four-millimetre socket | Connectors/Sockets | color metal | 3-16
    a finger-proof shroud; a captive collar; a solder lug at the back
controller = controller board, microcontroller module | Boards/Controllers | voltage color | 8-45
    a reset key; pins on a breadboard pitch; a radio on the board
relay = relay module, opto-coupled driver | Boards/Drivers | voltage pack | 5-26
    a lamp for each channel; screw clamps; a jumper for the active level
loadcell = load cell, strain gauge beam | Sensors/Force | metal size | 6-42
    a milled bending zone; four coloured leads; a stop against overload
thermistor = thermistor bead, temperature probe | Sensors/Heat | metal bore | 4-23
    a matched curve; a sleeved tip; a metre of thin lead

# Power & Wiring
benchsupply = bench supply, regulated supply | Supplies/Bench | voltage grade | 45-210
    current limiting; a quiet fan; coarse and fine knobs
converter = buck converter, step-down regulator | Supplies/Converters | voltage pack | 4-24
    a trimmer on top; a wide input window; a cool running inductor
fuse = fuse holder, blade fuse carrier | Protection | voltage pack | 3-14
    a dust cap; a spare tucked inside; a drip loop
wire = stranded wire, flexible hook-up wire | Cable/Wire | color size | 5-32
    fine tinned strands; a jacket that shrugs off a hot iron; a printed metre count
heatshrink = shrink sleeving, adhesive-lined sleeve | Cable/Sleeving | color bore | 4-19
    a three-to-one ratio; a glue lining; a snug low-temperature recovery
terminal = terminal block, lever connector | Joints | voltage color | 4-22
    levers that open by hand; a test slot; numbered ways
gland = cable gland, strain relief bush | Entry Fittings | plastic thread | 3-16
    a domed nut; a lip that keeps rain out; a neoprene bung
battery = lithium pack, rechargeable cell holder | Batteries | voltage size | 9-78
    a protection circuit; a polarised plug; a charge gauge

# Hand Tools
stripper = wire stripper, automatic stripping pliers | Cutting/Strippers | size color | 9-46
    self-adjusting jaws; a crimp nest; a length stop
screwdriver = precision screwdriver, watchmaker's driver | Driving/Screwdrivers | metal pack | 6-39
    a spinning cap; hardened tips; a knurled barrel
hexkey = hex key set, ball-end key set | Driving/Keys | size thread | 5-31
    sizes stamped twice; a folding holder; a ball end for awkward angles
file = needle file, smoothing file | Shaping/Files | size pack | 6-29
    cross-cut teeth; a beech handle; six profiles
deburr = deburring knife, swivel scraper | Shaping/Deburring | metal size | 8-34
    a blade that follows the edge; spare bits in the grip; a hanging hole
tweezers = pointed tweezers, curved tweezers | Holding/Tweezers | metal pack | 4-27
    tips that meet exactly; an anti-static coat; a matt surface
cutter = side cutter, flush nippers | Cutting/Nippers | size color | 7-38
    a flush face; a lap joint; a spring that stays put
spatula = chemist's spatula, micro scoop | Handling/Spatulas | metal size | 3-15
    one flat and one spoon end; a bent shaft; rounded corners

# Power Tools & Abrasives
rotary = rotary tool, flexible-shaft grinder | Machines | voltage color | 38-165
    a soft-start motor; a keyless collet; a hook for hanging
drillbit = twist drill, split-point bit | Boring/Drills | bore metal | 4-33
    a point that does not wander; a ground flute; a hinged index case
sanding = sanding disc, abrasive sheet | Abrasives/Grits | pack size | 5-24
    a backing that survives water; graded grits; a clog-resistant coat
polish = polishing compound, finishing paste | Abrasives/Compounds | grade color | 5-22
    a fine even cut; a bar form; a low-dust recipe
wheel = cutting wheel, parting disc | Abrasives/Wheels | pack size | 4-26
    a glass-fibre web; a thin kerf; a balanced hub
holesaw = hole saw, annular cutter | Boring/Hole Saws | size metal | 9-58
    chip slots; a pilot point; bimetal teeth
burr = carbide burr, engraving point | Milling | bore pack | 7-44
    a double cut; a tapered nose; a hard shank
buff = felt bob, buffing mop | Abrasives/Mops | size pack | 4-18
    dense wool; stitched rings; a mandrel in the box

# Fasteners & Fixings
capscrew = socket cap screw, button-head screw | Screws | thread metal | 3-18
    rolled flanks; a deep recess; a compartment box
insert = heat-set insert, threaded bush | Inserts | thread pack | 4-20
    opposed knurls; a lead-in taper; a flush shoulder
standoff = hexagonal standoff, board spacer | Spacers | thread plastic | 3-16
    a male and a female end; chamfered corners; an insulating body
locknut = lock nut, self-locking nut | Nuts | thread metal | 3-13
    a captive ring; a body made for reuse; clean chamfers
washer = flat washer, spring washer | Washers | thread metal | 2-11
    tumbled edges; a wide face; an even spring set
clip = hose clip, worm-drive band | Clips & Bands | bore metal | 3-15
    a rolled rim; a slotted head; a non-perforated strap
tie = cable tie, releasable tie | Ties | color plastic | 3-14
    a tab that lets go again; rounded teeth; sunlight resistance
magnet = disc magnet, countersunk magnet | Magnets | size pack | 4-25
    a triple coat; a marked pole; a strong pull for its height

# Pumps & Fluid Handling
peristaltic = peristaltic pump, metering pump | Pumps/Metering | voltage plastic | 16-120
    a snap-off head; three rollers; reversible flow
airpump = diaphragm pump, aerator | Pumps/Air | voltage size | 11-72
    rubber feet; a valve for each outlet; a hum that fades into the room
tubing = silicone tubing, flexible hose | Lines/Tubing | bore color | 5-36
    a kink-resistant wall; a smooth inside; a metre mark
barb = barbed connector, tee piece | Lines/Connectors | bore plastic | 3-17
    sharp gripping ridges; a slim waist; equal arms
checkvalve = check valve, non-return valve | Valves/Passive | bore plastic | 3-19
    a low opening pressure; an arrow in relief; a duckbill inside
solenoid = solenoid valve, electric shut-off | Valves/Driven | voltage bore | 9-54
    a normally closed seat; a short click; a strainer at the inlet
membrane = filter membrane, cartridge filter | Filtration | size pack | 8-49
    an even pore; a support fleece; a colour-coded rim
airstone = air stone, ceramic diffuser | Aeration | size color | 3-18
    bubbles like champagne; a weighted base; pores that clean easily

# Adhesives & Casting
epoxy = epoxy resin, casting resin | Casting/Resins | volume color | 12-85
    a slow cure; a nearly bubble-free pour; a hardener that does not yellow
rubber = moulding rubber, two-part silicone | Casting/Rubbers | volume color | 14-92
    a soft tear-proof set; an easy one-to-one mix; sharp detail
release = release spray, parting wax | Casting/Release | volume grade | 6-27
    a film too thin to see; a quick flash-off; a brush in the lid
pigment = pigment paste, mica powder | Casting/Colour | color pack | 5-24
    a glint that shifts with the light; a strong tint; drip-proof pots
superglue = instant adhesive, cyanoacrylate | Glues/Instant | size grade | 4-18
    a pin in the cap; a gel that stays where it is put; a grip within seconds
threadlock = thread-locking fluid, screw sealant | Glues/Anaerobic | grade color | 5-22
    a medium hold; a bottle that stands on its head; a fluorescent trace
uvglue = light-curing glue, optical cement | Glues/Light-Curing | volume grade | 7-41
    a set that waits for the lamp; a glass-clear line; a needle tip
potting = potting compound, encapsulation gel | Casting/Encapsulants | volume color | 9-56
    a low exotherm; a self-levelling flow; re-enterable softness

# Plastics & Printing
filament = printer filament, spooled polymer | Printing/Filament | color plastic | 15-46
    a tidy wind; a diameter held to hundredths; a vacuum bag
photoresin = photopolymer, liquid printing resin | Printing/Liquids | volume color | 18-74
    a mild smell; crisp corners; a shake-ball
nozzle = hot-end nozzle, extruder tip | Printing/Spares | bore metal | 4-28
    a polished land; a size mark on the flat; a hardened mouth
plate = build plate, textured print bed | Printing/Spares | size metal | 12-64
    a grip that fades as it cools; a flexing spring sheet; two finishes
acrylic = acrylic sheet, cast perspective panel | Sheet/Acrylic | color size | 6-52
    a peel-off film; flame-polished edges; bubble-free depth
drybox = spool dryer, filament cabinet | Printing/Drying | voltage size | 21-89
    a warm air loop; a small humidity dial; feed-through bushes
foamboard = foam board, modelling panel | Sheet/Foam | size color | 5-27
    a core that cuts like butter; flat paper faces; a true right angle
stencil = stencil film, masking film | Sheet/Films | size pack | 5-23
    a low tack; a squared grid; a crack-free bend

# Safety & Hygiene
gloves = nitrile gloves, textured gloves | Hands | color size | 6-24
    beaded cuffs; textured fingertips; a powder-free inside
goggles = splash goggles, safety spectacles | Eyes | color size | 5-32
    an anti-fog coat; a broad strap; room for ordinary glasses
respirator = half mask, vapour respirator | Breathing | size grade | 14-68
    bayonet cartridges; a drop-down harness; a soft nose bridge
apron = rubber apron, bib apron | Clothing | color size | 8-36
    crossed back straps; a wipe-clean front; a towel loop
spillkit = spill kit, absorbent granules | Spills | size pack | 9-57
    a scoop and a sack; a neutralising agent; a lid that serves as dustpan
sharps = sharps bin, puncture-proof jar | Disposal | size color | 4-21
    a one-way flap; a fill line; a temporary lock
eardefender = ear defenders, folding earmuffs | Hearing | color size | 8-44
    gel cushions; a padded band; cups that fold away
wipes = low-lint wipes, knitted wipes | Cleaning | pack size | 5-29
    sealed edges; a dispenser box; a soft double knit

# Growing & Field Work
growlamp = grow lamp, full-spectrum panel | Indoor Growing/Light | voltage size | 19-135
    a daisy-chain socket; a timer on the cord; a warm-white and red blend
wool = mineral wool cubes, sponge plugs | Indoor Growing/Media | size pack | 5-22
    pre-cut slits; a neutral start; an airy core
netpot = net pot, slotted basket | Indoor Growing/Pots | size plastic | 4-19
    a wide lip; slots for roots; a stackable taper
corer = soil corer, gouge auger | Field/Coring | metal size | 18-96
    a foot bar; depth rings; an open window along the barrel
sieve = test sieve, nesting sieve | Field/Sieving | metal size | 13-82
    a woven mesh; a crimped rim; a matching pan
bag = sample bag, whirl-top pouch | Field/Bags | volume pack | 5-23
    a wire closure; a writing field; a gusset that stands
net = plankton net, dip net | Field/Nets | size color | 16-92
    a tapered sock; a collecting cup; a three-part handle
seedtray = seed tray, propagator | Indoor Growing/Trays | size color | 6-34
    an air vent; drip channels; a tall hood

# Storage & Bench
drawer = parts drawer, small-parts cabinet | Storage/Cabinets | color size | 11-72
    label windows; drawers that stop before they fall; dovetailed sides
rack = draining rack, wire rack | Storage/Racks | metal size | 7-43
    a dipped finish; movable pegs; a tray below
label = label tape, write-on stickers | Marking | color pack | 4-20
    a split backing; an ink that stays through a wash; rounded edges
desiccator = desiccator cabinet, dry keeper | Storage/Dry Storage | size color | 17-98
    a dial hygrometer; a gasketed door; a grid shelf
mat = bench mat, cutting mat | Surfaces | size color | 8-47
    a printed centimetre grid; an earthing stud; a self-healing top
stand = retort stand, boss-head support | Supports | metal size | 12-64
    a heavy foot; cork-lined jaws; a rod that unscrews
tote = stacking tote, lidded crate | Storage/Crates | size color | 6-38
    snap handles; a moulded drain corner; a lid that locks
magnifier = bench magnifier, illuminated arm lens | Viewing | voltage size | 22-118
    a balanced arm; a flap against stray sun; daylight diodes
"""

PROJECTS = """
pond survey = net vial phpen slide buffer coverslip label
resin jewellery = rubber gloves epoxy scale pigment sanding magnifier
hydroponic rack = growlamp tote airpump nutrients conductivity netpot tie
soil life = corer beaker stain coverslip tweezers objective bag
bench supply rebuild = benchsupply multimeter stripper bananasocket terminal drawer
printed enclosure = caliper filament insert gland sanding magnet controller
crystal garden = copper watchglass scale tote loupe isopropanol desiccator
small brewery = tote citric barb refractometer flask airstone infrared
optics bench = prism stand ringlight wipes luxmeter tissue
weather mast = controller battery potting thermistor gland capscrew acrylic
reef dosing = peristaltic controller fuse tubing conductivity buffer
titration class = burette citric stand phpen beaker wipes
electroplating = benchsupply copper goggles beaker multimeter spillkit polish
kitchen balance = loadcell acrylic screwdriver controller standoff wire
soap studio = glycerol scale apron rubber cylinder release label
board repair = magnifier isopropanol capacitor tweezers heatshrink gloves
bird box camera = controller filament magnet battery uvglue gland
plant cloning = agar testtube growlamp gloves rack wool
cell staining = stain slide sharps objective isopropanol tissue
water filter = charcoal cylinder membrane acrylic barb conductivity
blade restoration = wheel eardefender file polish goggles buff mat
stone carving = rotary respirator burr loupe buff desiccator
robot arm = hexkey controller capscrew threadlock battery tie
drip garden = solenoid relay terminal tubing seedtray drillbit nutrients
lavender still = condenser clip stand tubing infrared vial label
gel tank = acrylic superglue benchsupply agar bananasocket stain gloves
figurine workshop = photoresin gloves isopropanol rack respirator sanding uvglue
acrylic aquarium = holesaw acrylic deburr membrane tote airstone
compost lab = apron sieve scale testtube charcoal seedtray spatula bag
cycle battery = battery multimeter stripper heatshrink locknut toggle
fume box = respirator foamboard converter charcoal airpump drawer
printer upkeep = nozzle hexkey plate isopropanol drybox washer
algae reactor = flask airpump luxmeter nutrients magnet checkvalve growlamp
field geology = loupe corer spatula sieve sharps bag drawer
model railway = foamboard cutter resistor superglue relay stencil toggle
seed library = seedtray slide label wool micrometer desiccator
"""
