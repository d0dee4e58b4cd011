-- What users are interested in, what the marketplace offers for it, and the gaps between the two.

CREATE TABLE interest_catalog (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    created_at timestamptz NOT NULL DEFAULT now(),
    sort_order int NOT NULL DEFAULT 0,
    is_active  boolean NOT NULL DEFAULT true,
    domain     text NOT NULL,
    category   text NOT NULL,
    tag        text NOT NULL,
    locale     text NOT NULL DEFAULT 'en-US',
    CONSTRAINT interest_catalog_key UNIQUE (domain, category, tag, locale),
    CONSTRAINT interest_catalog_domain_check CHECK (domain ~ '\S' AND length(domain) <= 100),
    CONSTRAINT interest_catalog_category_check CHECK (category ~ '\S' AND length(category) <= 100),
    CONSTRAINT interest_catalog_tag_check CHECK (tag ~ '\S' AND length(tag) <= 100),
    CONSTRAINT interest_catalog_locale_check CHECK (locale ~ '^[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8}){0,5}$')
);
COMMENT ON TABLE interest_catalog IS 'The interests that users can choose: tags within categories within domains, per locale.';
COMMENT ON COLUMN interest_catalog.id IS 'Identifies the interest';
COMMENT ON COLUMN interest_catalog.created_at IS 'When it was added';
COMMENT ON COLUMN interest_catalog.sort_order IS 'Place among the tags of its category; lower is shown first';
COMMENT ON COLUMN interest_catalog.is_active IS 'False: no longer offered, and its gaps are neither checked nor shown';
COMMENT ON COLUMN interest_catalog.domain IS 'Widest grouping, such as music';
COMMENT ON COLUMN interest_catalog.category IS 'Grouping within the domain, such as records';
COMMENT ON COLUMN interest_catalog.tag IS 'The interest itself, such as jazz vinyl';
COMMENT ON COLUMN interest_catalog.locale IS 'Language tag of the texts, such as en-US';

CREATE TABLE marketplace_categories (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    is_active  boolean NOT NULL DEFAULT true,
    slug       text NOT NULL,
    name       text NOT NULL,
    domain     text NOT NULL,
    category   text NOT NULL,
    tags       text[] NOT NULL DEFAULT '{}',
    CONSTRAINT marketplace_categories_slug_key UNIQUE (slug),
    CONSTRAINT marketplace_categories_slug_check CHECK (slug ~ '^[a-z0-9._-]{1,200}$'),
    CONSTRAINT marketplace_categories_name_check CHECK (name ~ '\S' AND length(name) <= 200),
    CONSTRAINT marketplace_categories_domain_check CHECK (domain ~ '\S' AND length(domain) <= 100),
    CONSTRAINT marketplace_categories_category_check CHECK (category ~ '\S' AND length(category) <= 100),
    CONSTRAINT marketplace_categories_tags_check CHECK (array_position(tags, NULL) IS NULL AND cardinality(tags) <= 100)
);
CREATE INDEX marketplace_categories_domain_idx ON marketplace_categories (domain, category);
COMMENT ON TABLE marketplace_categories IS 'The categories that listings are offered in.';
COMMENT ON COLUMN marketplace_categories.id IS 'Identifies the category';
COMMENT ON COLUMN marketplace_categories.created_at IS 'When it was added';
COMMENT ON COLUMN marketplace_categories.updated_at IS 'When it was changed last';
COMMENT ON COLUMN marketplace_categories.is_active IS 'False: closed, and its gaps are neither checked nor shown';
COMMENT ON COLUMN marketplace_categories.slug IS 'Its name in addresses: lower-case letters, digits, dot, dash, underscore';
COMMENT ON COLUMN marketplace_categories.name IS 'Its name for readers';
COMMENT ON COLUMN marketplace_categories.domain IS 'Domain that it belongs to';
COMMENT ON COLUMN marketplace_categories.category IS 'Grouping within the domain';
COMMENT ON COLUMN marketplace_categories.tags IS 'Words that describe it, at most 100';

CREATE TABLE marketplace_interest_map (
    interest_id uuid NOT NULL REFERENCES interest_catalog ON DELETE CASCADE,
    category_id uuid NOT NULL REFERENCES marketplace_categories ON DELETE CASCADE,
    confidence  double precision NOT NULL DEFAULT 0.9,
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    source      text NOT NULL DEFAULT 'manual',
    PRIMARY KEY (interest_id, category_id),
    CONSTRAINT marketplace_interest_map_confidence_check CHECK (confidence BETWEEN 0 AND 1),
    CONSTRAINT marketplace_interest_map_source_check CHECK (source ~ '\S' AND length(source) <= 100)
);
CREATE INDEX marketplace_interest_map_category_idx ON marketplace_interest_map (category_id);
COMMENT ON TABLE marketplace_interest_map IS 'Which categories serve which interest.';
COMMENT ON COLUMN marketplace_interest_map.interest_id IS 'The interest';
COMMENT ON COLUMN marketplace_interest_map.category_id IS 'A category that serves it';
COMMENT ON COLUMN marketplace_interest_map.confidence IS 'How well it does, 0 to 1';
COMMENT ON COLUMN marketplace_interest_map.created_at IS 'When the two were joined';
COMMENT ON COLUMN marketplace_interest_map.updated_at IS 'When it was changed last';
COMMENT ON COLUMN marketplace_interest_map.source IS 'Who says so: manual, auto or a name of yours';

CREATE TABLE user_interests (
    user_id     uuid NOT NULL,
    interest_id uuid NOT NULL REFERENCES interest_catalog ON DELETE CASCADE,
    affinity    double precision NOT NULL DEFAULT 0.8,
    updated_at  timestamptz NOT NULL DEFAULT now(),
    confidence  text NOT NULL DEFAULT 'explicit',
    source      text NOT NULL DEFAULT 'onboarding',
    PRIMARY KEY (user_id, interest_id),
    CONSTRAINT user_interests_affinity_check CHECK (affinity BETWEEN 0 AND 1),
    CONSTRAINT user_interests_confidence_check CHECK (confidence IN ('explicit', 'inferred')),
    CONSTRAINT user_interests_source_check CHECK (source ~ '\S' AND length(source) <= 100)
) WITH (fillfactor = 90);
CREATE INDEX user_interests_interest_idx ON user_interests (interest_id, user_id);
COMMENT ON TABLE user_interests IS 'Which user is interested in what, and how much. The number of users is the demand for an interest.';
COMMENT ON COLUMN user_interests.user_id IS 'User id in the application';
COMMENT ON COLUMN user_interests.interest_id IS 'The interest';
COMMENT ON COLUMN user_interests.affinity IS 'How much, 0 to 1';
COMMENT ON COLUMN user_interests.updated_at IS 'When it was changed last';
COMMENT ON COLUMN user_interests.confidence IS 'explicit (the user chose it) or inferred';
COMMENT ON COLUMN user_interests.source IS 'Where it comes from: onboarding or a name of yours';

CREATE TABLE marketplace_listings (
    id                uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    category_id       uuid REFERENCES marketplace_categories ON DELETE SET NULL,
    seller_profile_id uuid NOT NULL,
    price_cents       bigint NOT NULL,
    views_count       bigint NOT NULL DEFAULT 0,
    created_at        timestamptz NOT NULL DEFAULT now(),
    updated_at        timestamptz NOT NULL DEFAULT now(),
    stock_quantity    int NOT NULL DEFAULT 1,
    status            text NOT NULL DEFAULT 'draft',
    currency          text NOT NULL DEFAULT 'USD',
    title             text NOT NULL,
    description       text,
    location          text,
    media             jsonb NOT NULL DEFAULT '[]',
    metadata          jsonb NOT NULL DEFAULT '{}',
    CONSTRAINT marketplace_listings_price_cents_check CHECK (price_cents >= 0),
    CONSTRAINT marketplace_listings_views_count_check CHECK (views_count >= 0),
    CONSTRAINT marketplace_listings_stock_quantity_check CHECK (stock_quantity >= 0),
    CONSTRAINT marketplace_listings_status_check CHECK (status IN ('draft', 'active', 'sold', 'archived')),
    CONSTRAINT marketplace_listings_currency_check CHECK (currency ~ '^[A-Z]{3}$'),
    CONSTRAINT marketplace_listings_title_check CHECK (title ~ '\S' AND length(title) <= 300),
    CONSTRAINT marketplace_listings_description_check CHECK (length(description) <= 20000),
    CONSTRAINT marketplace_listings_location_check CHECK (location ~ '\S' AND length(location) <= 300),
    CONSTRAINT marketplace_listings_media_check CHECK (jsonb_typeof(media) = 'array'),
    CONSTRAINT marketplace_listings_metadata_check CHECK (jsonb_typeof(metadata) = 'object')
) WITH (fillfactor = 90);
CREATE INDEX marketplace_listings_in_stock_idx ON marketplace_listings (category_id) WHERE status = 'active' AND stock_quantity > 0;
CREATE INDEX marketplace_listings_category_idx ON marketplace_listings (category_id);
CREATE INDEX marketplace_listings_seller_idx ON marketplace_listings (seller_profile_id);
COMMENT ON TABLE marketplace_listings IS 'What sellers offer. Active listings in stock are the inventory of their category.';
COMMENT ON COLUMN marketplace_listings.id IS 'Identifies the listing';
COMMENT ON COLUMN marketplace_listings.category_id IS 'Category that it is offered in; NULL: in none, so it is no inventory';
COMMENT ON COLUMN marketplace_listings.seller_profile_id IS 'Profile id of the seller in the application';
COMMENT ON COLUMN marketplace_listings.price_cents IS 'Price in hundredths of the currency';
COMMENT ON COLUMN marketplace_listings.views_count IS 'How often it was viewed';
COMMENT ON COLUMN marketplace_listings.created_at IS 'When it was added';
COMMENT ON COLUMN marketplace_listings.updated_at IS 'When it was changed last';
COMMENT ON COLUMN marketplace_listings.stock_quantity IS 'Pieces left; with 0 it is no inventory';
COMMENT ON COLUMN marketplace_listings.status IS 'draft, active, sold or archived; only active ones are inventory';
COMMENT ON COLUMN marketplace_listings.currency IS 'Three capital letters (ISO 4217)';
COMMENT ON COLUMN marketplace_listings.title IS 'Title for readers, up to 300 characters';
COMMENT ON COLUMN marketplace_listings.description IS 'Text for readers, up to 20000 characters';
COMMENT ON COLUMN marketplace_listings.location IS 'Where it is offered, up to 300 characters';
COMMENT ON COLUMN marketplace_listings.media IS 'Array of pictures and films';
COMMENT ON COLUMN marketplace_listings.metadata IS 'Whatever else the application keeps with it';

-- The key has a column that may be NULL, so a primary key of its own lets logical replication name the rows.
CREATE TABLE marketplace_gaps (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    interest_id  uuid NOT NULL REFERENCES interest_catalog ON DELETE CASCADE,
    category_id  uuid REFERENCES marketplace_categories ON DELETE CASCADE,
    inventory_ct bigint NOT NULL DEFAULT 0,
    last_checked timestamptz NOT NULL DEFAULT now(),
    gap_level    text NOT NULL DEFAULT 'critical',
    CONSTRAINT marketplace_gaps_key UNIQUE NULLS NOT DISTINCT (interest_id, category_id),
    CONSTRAINT marketplace_gaps_inventory_ct_check CHECK (inventory_ct >= 0),
    CONSTRAINT marketplace_gaps_gap_level_check CHECK (gap_level IN ('none', 'low', 'critical'))
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX marketplace_gaps_category_idx ON marketplace_gaps (category_id);
COMMENT ON TABLE marketplace_gaps IS 'How well each interest is served by each of its categories, as last checked. Written by refresh_gaps().';
COMMENT ON COLUMN marketplace_gaps.id IS 'Identifies the row';
COMMENT ON COLUMN marketplace_gaps.interest_id IS 'The interest';
COMMENT ON COLUMN marketplace_gaps.category_id IS 'The category that was checked; NULL: no category serves the interest';
COMMENT ON COLUMN marketplace_gaps.inventory_ct IS 'Active listings in stock of the category when it was checked';
COMMENT ON COLUMN marketplace_gaps.last_checked IS 'When it was checked last';
COMMENT ON COLUMN marketplace_gaps.gap_level IS 'none, low or critical; see discovery_gap_level()';
