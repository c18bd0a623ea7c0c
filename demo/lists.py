"""Word lists: nouns, names and places. words.py decides which are held out."""


def split_words(text: str) -> list[str]:
    """Split at white space."""
    return text.split()


NOUNS = split_words("""
abacus account acorn acre airport aisle alarm album alert algae allergy alley almond altar ambulance amplifier anchor
antenna anthem antique apartment appliance apron aquarium arcade arch archive arena armchair arrow article artist ash
asset atlas attic auction audit avalanche avenue awning axle backpack badge bagel bakery balance balcony balloon ballot
bamboo banjo banner barge barn barrel basil basin basket bath battery bay beacon beak beam bean bear beaver beehive bell
belt bench berry bicycle bill billboard bin binder biscuit bishop bison blanket blossom blueprint boat boiler bolt bonus
bookmark boot booth border bottle bouquet bow bowl box bracelet brake branch bread brick bride bridge broadcast brochure
broom brush bubble bucket budget buffet bug bulb bull bumper bundle bunker burrow bus butter button cabbage cabin
cabinet cable cactus cake calendar camel camera campaign candle candy canoe canvas canyon cape capsule caravan card
cargo carnival carpet carriage carrot cart cartoon cashier casino cassette castle castor catalog cathedral cave cedar
ceiling cell cello cement census cereal certificate chain chair chalk champion channel chapel charger chart cheese
cherry chess chest chimney chip choir cider cinema circle circus citizen claim clamp clay cliff clinic clock closet
cloud clover coach coast coat cobra cocoa coconut coin collar college colony column comet comment compass complaint
concert container contract conveyor cookie copper coral cork corridor costume cottage cotton couch council counter
coupon course courtyard cousin cradle crane crate crater crayon credit creek crew cricket crop crown cruise crystal cube
cuff cupboard curb current curtain cushion cyclone dairy dam dance dashboard date deadline deck delivery deposit desert
desk dessert device diagram diamond dice diet dinghy dinner diploma discount dish dock document doll dolphin dome
donation donkey door dossier draft dragon drawer dress drone dryer duck dune dungeon dustbin eagle earring easel
easement echo eclipse editor elbow elevator elm embassy ember emblem employee engine engineer envelope episode estate
exam exhibit exit expense fabric factory fair falcon fan farm farmer feather feedback fence ferret ferry festival fiber
fiddle field fig filter firewall fish flag flame flask fleet flood floor flour flower flute foam fog foil folder forest
fork formula fort forum fossil foundry fountain fox frame freezer freight fridge frog frost fruit fuel funnel fur
furnace galaxy gallery gallon game garage garden garlic gate gazebo gear gem generator geyser ghost gift ginger giraffe
glacier glass globe glove glue goal goat gold gondola goose gown grain grant grape graph grass grave greenhouse grid
grill grove guest guide guitar gull gym habitat hall hammer hamster hangar harbor harvest hat hatch hay headset heater
hedge heel helmet heron hill hinge hive hockey holiday honey hood hook horizon horn horse hose hospital hostel hotel
hound house humidity husk hut hydrant iceberg icon idol igloo index ingredient ink inn insect inspection insurance
interview inventory invoice iron island ivory ivy jacket jail jar jazz jelly jersey jet jewel jigsaw job journal journey
judge juice jungle juniper jury kayak kennel kernel kettle key kidney kiln kingdom kiosk kitchen kite knife knight knot
lab label lace ladder lagoon lake lamp lane lantern laptop larva laser lash launch lava lawn leaf league lease leather
lecture ledger legend lemon lens lentil lesson letter level lever library license lid lift lily lime linen lion lizard
llama loaf lobby lobster lock locker loft log loom lottery lotus lounge lumber lunch lung lute lynx machine magazine
magnet mailbox mall mango mansion manual map maple marathon marble margin marina market marsh mask mast mat matrix
mattress maze meadow meal mechanic medal melon member memo mentor menu mermaid metal meteor meter microscope midwife
mill mine mint mirror mission mitten moat model module mole monk monument moon moose mop morgue mosaic moss motel moth
motor mound mountain mouse mud muffin mule museum mushroom musician mustard nail napkin nature nebula necklace needle
nephew nest network nickel noodle notebook novel nozzle nursery nut oak oar oasis oat ocean octopus offer office olive
onion opal opera orange orbit orchard orchestra orchid organ ornament ostrich otter ounce outfit outlet outpost oven
owner oyster package paddle padlock page pail painting palace palm pan panda panel pantry paper parade paragraph parcel
park parking parrot parsley passenger passport pasta pastry pasture patch path patient pattern payment peach peacock
peak pear pearl pebble pelican pen penguin pension pepper perfume permit pet pharmacy phone piano picture pier pigeon
pillow pilot pine pinecone pipe pirate pistachio pixel plane planet plank plant plate platform plaza plough plum plumber
pocket podcast poem pole policy pollen polygon pond pony pool porch portal postcard poster pot potato pottery powder
prairie printer prism prison prize profile project prophet protein pulley pump pumpkin puppet purse puzzle pyramid quail
quarry quarter quartz queen query queue quill quilt quiz quota rabbit raccoon rack radar radio radish raft rail rainbow
raisin rally ramp ranch rate rating raven razor reactor receipt record reef refrigerator region registry relic repair
report reptile reservoir resin resort restaurant review reward ribbon rice rifle ring rink ritual river road robe robin
robot rocket roof room rope rose rotor route rubber ruby rudder rug ruin ruler rye saddle safari sail sailor salad
salary salmon salt sample sand sandal sapphire sash satellite saucer sauna sausage saw scaffold scale scanner scarf
schedule scholarship school scissors scooter score scorpion scout screen screw scroll sculpture seal seat seed sensor
server session shadow shark sheep sheet shelf shell shelter shield shift ship shipment shirt shoe shop shovel shower
shrimp shrine shrub shuttle sidewalk sieve signal silk sink siren skate sketch ski skill skirt skull sky sled sleeve
slide slipper smoke snail snake sock socket soda sofa soil solar soldier sonar soul soup spa spaceship sparrow spear
spice spider spinach spire sponge sponsor spoon spring spruce square squirrel stable stadium stage stair staircase stamp
star station statue steam steel stem stew stone stool storage stork storm story stove straw stream street string studio
stump submarine subscription suburb sugar suitcase summit sundial surgeon survey swamp swan swarm swimmer switch sword
syrup tablet tadpole tail tailor tank tap tapestry tar tariff task tax tea team telescope temple tendon tent terminal
textile theater theme thimble thorn thread throne thumb thunder ticket tide tiger tile timber tin toad toast tobacco
tomato tomb tongue toolbox torch tornado totem towel tower town toy tractor trail trailer train trampoline trap tray
treasure treaty tree trench trial triangle tribe tripod trolley trombone trophy trout truck trumpet trunk tub tuba tulip
tuna tunnel turbine turkey turnip turtle tusk tutor tyre umbrella umpire uniform urn vaccine valet valley valve van vase
vault vehicle veil velvet vendor venue verse vest video village vine vineyard violet violin visa volcano voucher vulture
wafer wage wagon waiter wall wallet walnut walrus wand wardrobe warehouse warranty wasp watch water waterfall wave wax
weasel web well wharf wheat wheel whip whisk whistle widget wig willow wind windmill window wine wing winter wire witch
wizard wolf wood wool workbench workshop worm wreath wren wrench wrist yacht yard yarn yogurt zebra zipper zone zoo
""")

ADJECTIVES = split_words("""
absent abstract academic acid acoustic active agile airy amber ample ancient angry annual atomic automatic average awake
backup basic big bitter black bland blank blind blue blunt bold bony brave brief bright brisk brittle broken bronze
brown bulky busy calm casual central ceramic charming cheap chief chilly circular civil classic clean clever clumsy
coarse coastal cold colorful common compact complex concrete copper cosmic cozy creamy crimson crisp crude curly cyan
daily damp dark deep dense digital dirty distant domestic dotted double drowsy dry dull dusty eager early eastern
elastic electric elegant empathic empty enormous equal eternal exact exotic extra faint fair fancy fast feral fierce
final fixed flat flexible floral fluffy foreign formal fragile fresh frozen frugal full fuzzy gentle giant glossy gold
golden graceful grand green grey gritty handy happy harsh hasty heavy hidden hollow honest hot huge humble humid icy
ideal idle indoor inner internal iron jade joint jolly kind large late lazy legal lemon level light linear lively local
lofty lonely long loose lost loud loyal lucky lunar magic main manual marine massive mature medium mellow mighty mild
mini mint misty mobile modern modest moist monthly muddy mute narrow native navy neat neutral new night noble noisy
north northern oblong odd old olive open orange outdoor oval pale patient pearl perfect pink plain polar polite portable
precise primary private proud public pure purple quaint quick quiet radiant random rapid rare raw red regular remote
rigid ripe robust rocky rotten rough round royal rural rusty sacred safe salty scarce scarlet second secret senior
serious shallow sharp shiny short shy silent silver simple sleek sleepy slim sloppy slow small smart smooth snug sober
soft solar solid sour south southern spare sparse special spicy square stale steady steep sticky stiff still stone
stormy strange strict striped strong sturdy sudden sunny superb sweet swift tall tame teal temporary tender tense thick
thin tidy tight timid tiny total tough tropical turquoise twin upper urban urgent usual vague valid vast velvet vintage
violet vital vivid warm warped weak weary weekly west western wet white wicked wide wild wise witty wooden woolen worn
yearly yellow young zesty
""")

PARAMETER_NOUNS = split_words("""
access account activity actor adapter address agent album alias allergy altitude amount anchor angle animal answer
archive area arrival article aspect asset assignee audience author average axis background badge balance band bank
barcode basis batch bearing beginning benefit birthday block bonus border boundary brand breed brightness brush bucket
budget buffer building bundle button buyer cabin calendar caller campaign candidate capacity capital card cargo carrier
cash category cause ceiling cell center chamber channel chapter character charge circle class clause clearance client
climate clinic clothing cluster coach coating code color column command comment commission company component concept
condition confidence consent contact container content contrast coordinator core country county coupon courier course
court coverage craft crew criterion crop culture cursor curve customer cut damage deadline dealer debt decade decimal
default degree delay delivery density department deposit depth design detail dialect diameter diet digit dimension
direction disk display distance district dosage dose draft drive driver duration dust edition editor effect element
email employer encoding end energy engine entrance entry environment epoch era error estimate event exit expiry export
exposure extension fabric facet factor faculty fare fat feature fee fiber field figure file fill finish firm flag flavor
flight floor flow focus folder font footer force format fraction frame frequency fuel function funding gain gap gate
gear gender genre goal grade grid group guide habit header heading height hint holder home hospital host hue icon
identifier image importance income industry info ingredient input instructor insurance intensity interest interface
interval issue item job journal junction key keyboard kind knot label ladder landmark lane language latitude layer
layout lease lecture ledger length lens level liability license lift limit line link list load locale lock logo
longitude loss lot manager margin mark market mask mass material matter maximum meal meaning measure media medium member
memo menu merchant mesh metal method metric minimum mission mode model moment month mood motive mount movement movie
nation network nickname node noise norm note number object occasion occupation offset operator order organ origin
outcome outlet output owner pace pack package page paint palette panel paper parent park part partner party passage path
patient pattern payload payment payroll peak penalty percentage performer period permission pet phase phone piece
pigment pitch pixel placement plan planet platform player plot point policy pool population port portion position power
preference prefix premium prescription president pressure price print priority prize procedure product profession
profile profit program project proof property protocol province purpose quality quantity quarter quota race radius range
rank ratio reader reason receipt recipient record reference refund region relation relative release remark rent repeat
reply report request reserve resident residue resolution resource response result revenue review reward rhythm risk role
room rotation route row rule salary sample sauce scale schedule scheme school scope score script season seat secret
section sector seed segment seller sender sentence sequence serial server service session setting shade shape share
shelf shift shipment shop side sign signal site size skill skin slope slot solution source span speaker species speed
sponsor spot stadium staff stage stake stamp start state status stock store story strategy stream street strength stress
student studio style subject suffix summary supplier supply support surface survey suspect switch symbol symptom system
table tag target tax teacher team temper temperature tempo term terrain territory text texture theme thickness threshold
ticket tier timeout tip title token tolerance tone tool topic total track trade traffic trailer transfer transport
treatment trend trigger trip truck tune turn type uniform union unit upgrade urgency usage user vaccine value variant
vehicle vein velocity vendor venue verb version vessel view viewer visa visibility vision visit voltage volume vote
voucher wage wall warehouse wave weather website week weight wheel width window winner wire witness worker year yield
zip
""")

CITIES = split_words("""
Paris Rome Berlin London Madrid Tokyo Oslo Vienna Lisbon Dublin Prague Athens Cairo Sydney Boston Chicago Toronto Mumbai
Delhi Seoul Beijing Shanghai Bangkok Jakarta Lima Bogota Quito Havana Denver Seattle Houston Dallas Miami Atlanta Austin
Munich Hamburg Cologne Zurich Geneva Milan Naples Turin Venice Florence Warsaw Krakow Budapest Sofia Bucharest Istanbul
Ankara Dubai Doha Riyadh Tehran Kabul Karachi Lahore Dhaka Hanoi Manila Singapore Osaka Kyoto Nagoya Sapporo Busan
Taipei Perth Brisbane Melbourne Auckland Wellington Nairobi Lagos Accra Dakar Tunis Rabat Algiers Casablanca
Johannesburg Durban Helsinki Stockholm Copenhagen Bergen Gothenburg Riga Vilnius Tallinn Minsk Kyiv Odessa Moscow Kazan
Glasgow Edinburgh Manchester Liverpool Leeds Bristol Cardiff Belfast Cork Galway Brussels Antwerp Ghent Amsterdam
Rotterdam Utrecht Lyon Marseille Nice Toulouse Bordeaux Nantes Lille Seville Valencia Barcelona Bilbao Granada Porto
Coimbra Salzburg Graz Bern Basel Phoenix Portland Nashville Memphis Detroit Cleveland Montreal Vancouver Calgary Ottawa
Santiago Montevideo Caracas Aachen Aarhus Aberdeen Adelaide Alicante Almaty Amman Antalya Arequipa Asuncion Avignon Baku
Baltimore Bamako Bari Beirut Belgrade Bologna Bratislava Bremen Brasilia Brno Bruges Cadiz Cairns Canberra Cancun
Cartagena Catania Chennai Cincinnati Colombo Cordoba Curitiba Dakota Darwin Delft Dijon Dortmund Dresden Dundee
Eindhoven Essen Exeter Fez Fresno Fukuoka Gdansk Genoa Giza Grenoble Guadalajara Guayaquil Hanover Harare Heidelberg
Hiroshima Hobart Honolulu Hyderabad Incheon Innsbruck Izmir Jaipur Jena Kanpur Kobe Kochi Kuwait Leiden Leipzig Linz
Ljubljana Lodz Luanda Lucknow Lusaka Luxembourg Macau Malaga Malmo Managua Mannheim Maputo Marrakesh Medellin Milwaukee
Minneapolis Monterrey Murcia Nagasaki Nairn Norwich Nuremberg Oakland Omaha Orlando Oxford Palermo Panama Parma Pisa
Pittsburgh Plovdiv Poznan Pune Rennes Reno Reykjavik Rosario Rouen Sacramento Sarajevo Sendai Shenzhen Skopje Split
Stuttgart Suva Tampa Tampere Tbilisi Tirana Toledo Trieste Trondheim Tucson Tulsa Turku Ulm Uppsala Utica Varna Verona
Vigo Wuhan Yerevan York Zagreb
""")
TWO_WORD_CITIES = (
    "New York", "San Francisco", "Los Angeles", "Hong Kong", "Cape Town", "Buenos Aires", "Mexico City", "Las Vegas",
    "Tel Aviv", "New Delhi", "San Diego", "Kuala Lumpur", "Addis Ababa", "Santa Fe", "Ho Chi Minh", "Abu Dhabi",
)  # fmt: skip

FIRST_NAMES = split_words("""
Anna Ben Clara David Emma Felix Grace Henry Ida Jack Karen Leo Maria Noah Olga Peter Quinn Rosa Sam Tina Ulrich Vera
Walter Xenia Yusuf Zoe Alice Bob Charlie Diana Erik Fatima George Hanna Ivan Julia Kevin Laura Mark Nina Oscar Paula
Robert Sophie Thomas Ursula Victor Wendy Yara Zack Amir Bianca Carlos Dora Elena Frank Gina Hugo Irene Jonas Kim Lucas
Mia Nils Omar Priya Ralf Sara Tom Uma Viktor Wei Yuki Ali Berta Chen Derek Esther Fiona Gustav Helen Igor Jane Kofi Lena
Milan Nora Otto Petra Rita Simon Tara Ugo Vince Wanda Ahmed Bella Cyrus Dalia Edgar Flora Gordon Hilda John Mary James
Abel Ada Adele Aaron Agnes Alan Albert Alma Amanda Amy Andre Angela Antonio Aria Arthur Astrid Audrey Axel Barbara Basil
Beatrice Bernard Bjorn Boris Brenda Brian Bruno Camila Carla Carmen Cecilia Chloe Claude Colin Connor Cora Daniel Daphne
Daria Dennis Diego Dmitri Donna Dylan Edith Edwin Eileen Elias Eliza Elsa Emil Enzo Erin Ethan Eva Evan Ezra Fabian Faye
Floyd Frida Gabriel Gemma Gerda Gianni Gloria Greta Gwen Hamid Hannes Harold Hazel Hector Heidi Ines Ingrid Iris Isaac
Isabel Jacob Jamal Janet Jasper Javier Jerome Joan Joel Josef Judith Kai Katya Keiko Kirsten Klaus Lara Laurel Leila
Leon Liam Linda Linus Lorena Louis Lucy Luis Luna Magda Malik Marco Margot Marta Martin Maya Melvin Mira Mona Monica
Murat Nadia Naomi Nathan Neil Niko Noel Odette Oleg Olive Orlando Otis Pablo Pamela Pascal Pavel Penny Phoebe Rafael
Ramon Rania Raoul Renate Ricardo Roland Roman Rudy Ruth Ryan Sabine Salma Samir Sandra Selma Serge Silas Sonia Stefan
Stella Sven Tamara Tariq Tessa Theo Tobias Trevor Valerie Vanessa Vasily Vito Wilma Yasmin Yolanda Yves Zelda
""")
LAST_NAMES = split_words("""
Smith Jones Brown Miller Davis Garcia Wilson Moore Taylor Clark Lewis Walker Young King Wright Scott Green Baker Adams
Nelson Hill Campbell Mitchell Roberts Carter Phillips Evans Turner Parker Collins Stewart Morris Murphy Cook Rogers Reed
Bailey Bell Cooper Ward Cox Diaz Wood Watson Brooks Gray Kelly Price Bennett Ross Silva Rossi Weber Schmidt Novak Kovacs
Ivanov Petrov Tanaka Sato Suzuki Kim Park Nguyen Tran Singh Patel Khan Hassan Okafor Mensah Larsen Olsen Berg Lund
Abbott Acosta Alvarez Andersen Armstrong Arnold Barnes Becker Benson Blake Bishop Bradley Burke Byrne Calder Castro
Chavez Cohen Coleman Costa Craig Crawford Cruz Dalton Delgado Dixon Doyle Duarte Dubois Duncan Eriksen Espinoza Farrell
Ferrari Fischer Fleming Flores Foster Franco Fuchs Garner Gibson Gomez Gordon Graham Grant Griffin Haas Hansen Harper
Hayes Herrera Hoffman Holmes Horvat Hughes Hunter Ibrahim Jensen Kaplan Kaur Keller Kimura Koch Kowalski Lambert Lang
Lopez Malone Marino Marsh Mason Mendez Meyer Molina Monroe Moreno Mueller Nakamura Nash Nielsen Norris Ortega Osborne
Owens Palmer Papadakis Pereira Perez Popov Porter Ramos Reyes Richter Rivera Romero Russo Salazar Santos Schneider
Sharma Shaw Stone Sullivan Suarez Takeda Torres Vargas Vega Vogel Wagner Walsh Webb Yamamoto Yilmaz Zhang Zimmerman
""")
COUNTRIES = split_words("""
France Italy Germany Spain Portugal Norway Sweden Finland Denmark Poland Austria Greece Egypt Kenya
Ghana Morocco India
China Japan Korea Vietnam Thailand Brazil Chile Peru Mexico Canada Australia Turkey Ireland Iceland Belgium Hungary
""")
