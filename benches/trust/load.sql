INSERT INTO scenes (id, name, owner_did)
SELECT md5(i::text)::uuid, 'scene ' || i, 'did:' || i
  FROM generate_series(1, :scenes) AS i;

INSERT INTO memberships (scene_id, user_did, role, status, trust_weight)
SELECT md5(i::text)::uuid, 'did:' || j, (ARRAY['owner', 'curator', 'member', 'guest'])[1 + (i + j) % 4], 'active', (1 + (i * 7 + j * 13) % 100) / 100.0
  FROM generate_series(1, :scenes) AS i, generate_series(1, 10) AS j;

INSERT INTO alliances (from_scene_id, to_scene_id, weight)
SELECT md5(i::text)::uuid, md5((1 + (i + j * 37) % :scenes)::text)::uuid, (1 + (i * 3 + j * 17) % 100) / 100.0
  FROM generate_series(1, :scenes) AS i, generate_series(1, 3) AS j;
